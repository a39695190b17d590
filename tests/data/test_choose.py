"""Splits, samples, filters: every row on one side, by its content alone."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError, DataError
from controlllm.data import DataConfig, SourceConfig, TrainLoader, eval_batches
from controlllm.data.examples.row_filters import FILTERS, content_hash, keeps_row, register_filter
from controlllm.data.loader.open_source import check_first_rows
from controlllm.data.sources import open_chunks
from controlllm.train import RunConfig
from controlllm.train.setup.base import make_base

Row = dict[str, Any]

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ROWS = st.lists(st.dictionaries(st.text(max_size=3), SCALARS, max_size=4), max_size=30)


def parted(rows: list[Row], **options: Any) -> tuple[list[Row], list[Row]]:
    """What each side takes of rows."""
    sides = [SourceConfig("x", part=part, **options) for part in ("train", "held_out")]
    train, held_out = ([row for row in rows if keeps_row(row, side)] for side in sides)
    return train, held_out


@given(rows=ROWS, held_out=st.floats(0.01, 0.99), data=st.data())
def test_each_row_is_on_one_side_in_any_order(
    rows: list[Row], held_out: float, data: st.DataObject
) -> None:
    train, held = parted(rows, held_out=held_out)
    assert len(train) + len(held) == len(rows)
    assert [row for row in rows if row in train or row in held] == rows
    assert not [row for row in train if row in held]
    shuffled = data.draw(st.permutations(rows))
    turned = [dict(reversed(row.items())) for row in shuffled]  # other order of columns
    assert [row in train for row in turned] == [row in train for row in shuffled]
    elsewhere = SourceConfig("y", part="train", held_out=held_out)
    assert [keeps_row(row, elsewhere) for row in turned] == [row in train for row in shuffled]


@given(
    groups=st.lists(st.integers(0, 30) | st.text(max_size=2), min_size=1, max_size=60),
    held_out=st.floats(0.05, 0.95),
)
def test_no_group_is_on_both_sides(groups: list[Any], held_out: float) -> None:
    rows = [{"user": group, "text": str(i)} for i, group in enumerate(groups)]
    train, held = parted(rows, held_out=held_out, group_by="user")
    assert not {repr(row["user"]) for row in train} & {repr(row["user"]) for row in held}
    assert len(train) + len(held) == len(rows)


@given(held_out=st.floats(0.02, 0.98), sample=st.floats(0.02, 0.98), salt=st.integers())
@settings(deadline=None, max_examples=20)
def test_shares_are_what_was_asked_and_independent(
    held_out: float, sample: float, salt: int
) -> None:
    """Within five standard deviations of a fair coin, for 1,000 rows."""
    rows = [{"id": i, "salt": salt} for i in range(1000)]
    _, held = parted(rows, held_out=held_out)
    _, both = parted(rows, held_out=held_out, sample=sample)
    for count, share in ((len(held), held_out), (len(both), held_out * sample)):
        assert abs(count - 1000 * share) <= 5 * (1000 * share * (1 - share)) ** 0.5 + 1


def test_sides_do_not_depend_on_how_files_are_laid_out(tmp_path: Path) -> None:
    """One file, many files, Parquet with nulls where JSON has nothing: the same rows on a side."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[Row] = [
        {"text": f"row {i}", "meta": {"n": i} | ({} if i % 2 else {"tag": "x"})}
        | ({} if i % 3 == 1 else {"lang": "de"})
        for i in range(400)
    ]
    layouts = {name: tmp_path / name for name in ("one", "many", "table")}
    for folder in layouts.values():
        folder.mkdir()
    (layouts["one"] / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for k in range(4):
        part = rows[::-1][k::4]
        (layouts["many"] / f"{k}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    pq.write_table(pa.Table.from_pylist(rows), layouts["table"] / "a.parquet")
    for part in ("train", "held_out"):
        sides = []
        for folder in layouts.values():
            source = SourceConfig(str(folder), part=part, held_out=0.3)
            kept = [row for _, row in open_chunks(source).rows() if keeps_row(row, source)]
            sides.append(sorted(row["text"] for row in kept))
        assert sides[0] == sides[1] == sides[2]
        assert 50 < len(sides[0]) < 350


def test_groups_stay_apart_through_up_sampling(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Up-sampled training rows and held-out rows, as loader and evaluation give them."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"user": i % 12, "text": f"u{i % 12:02d}"}) + "\n"
                            for i in range(60)))  # fmt: skip
    split: dict[str, Any] = {"path": str(path), "group_by": "user", "held_out": 0.3}
    train = SourceConfig(part="train", sample=3.0, epochs=3, **split)
    config = DataConfig(train=[train], max_length=16)
    seen: set[str] = set()
    for batch in TrainLoader(config, pico_tokenizer, 2, seed=0):
        seen |= set(pico_tokenizer.decode(batch["input_ids"][0]).replace("<pad>", "").split("</s>"))
    held = {
        pico_tokenizer.decode(ids, skip_special_tokens=True)
        for batch in eval_batches(
            SourceConfig(part="held_out", **split), pico_tokenizer, DataConfig(packing=False), 1
        )
        for ids in batch["input_ids"]
    }
    trained = {text.replace("<s>", "") for text in seen} - {""}
    assert trained and held and not trained & held
    assert trained | held == {f"u{i:02d}" for i in range(12)}


def test_wanted_values_and_filters() -> None:
    @register_filter("test_choose.even")
    def even(row: Any) -> bool:
        return row["n"] % 2 == 0

    source = SourceConfig("x", where={"lang": ["en", "de"]}, filter="test_choose.even")
    rows = [{"lang": lang, "n": n} for lang in ("en", "de", "fr", None) for n in (0, 1)]
    kept = [row for row in rows if keeps_row(row, source)]
    assert kept == [{"lang": "en", "n": 0}, {"lang": "de", "n": 0}]
    with pytest.raises(DataError, match="column 'lang', named in `where`, is missing"):
        keeps_row({"n": 0}, source)
    with pytest.raises(DataError, match=r"filter 'test_choose.even' fails: TypeError"):
        keeps_row({"lang": "en", "n": "no"}, source)
    with pytest.raises(DataError, match="named in `group_by`, is missing"):
        keeps_row({}, SourceConfig("x", part="train", group_by="user"))
    with pytest.raises(ConfigError, match=r"filter='evn' is not known"):
        keeps_row({"lang": "en"}, SourceConfig("x", filter="evn"))


def test_a_failing_filter_names_the_row(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    register_filter("test_choose.short")(lambda row: len(row["text"]) < row["limit"])
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "limit": 3}\n{"text": "b"}\n')
    source = SourceConfig(str(path), filter="test_choose.short", epochs=1)
    config = DataConfig(train=[source], max_length=16)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the filter .* KeyError\('limit'\)"):
        list(TrainLoader(config, pico_tokenizer, 1, seed=0))
    source.on_bad_row = "skip"
    loader = TrainLoader(config, pico_tokenizer, 1, seed=0)
    assert len(list(loader)) == 1
    assert loader.progress()["0:rows"]["stats"].bad_rows == 1


MISSPELT: list[tuple[dict[str, Any], str]] = [
    ({"where": {"lagn": ["en"]}}, r"column 'lagn', named in `where`, is missing \(the row has "
     r"'user', 'text', 'lang', 'hardness'; did you mean 'lang'\?\)"),
    ({"part": "train", "group_by": "usr"}, "'usr', named in `group_by`, .* mean 'user'"),
    ({"difficulty": "hardnes"}, "'hardnes', named in `difficulty`, .* mean 'hardness'"),
    ({"columns": {"text": "txt"}}, "'txt', named in `columns`, .* mean 'text'"),
    ({"filter": "test_choose.misspelt"}, r"KeyError\('tetx'\) \(the row has .* mean 'text'"),
    ({"format": "gsm8k"}, r"'question' is missing \(the row has "),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), MISSPELT)
def test_a_misspelt_column_is_told_with_the_nearest_and_not_to_be_skipped(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase, options: Row, message: str
) -> None:
    if "test_choose.misspelt" not in FILTERS.names():
        register_filter("test_choose.misspelt")(lambda row: bool(row["tetx"]))
    row = {"user": 1, "text": "t", "lang": "en", "hardness": 3}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**row, "user": i}) + "\n" for i in range(300)))
    config = DataConfig(train=[SourceConfig(str(path), **options)], cache_dir=str(tmp_path))
    with pytest.raises(DataError, match=message) as caught:
        next(TrainLoader(config, pico_tokenizer, 1, seed=0))
    assert "source 'rows': " in str(caught.value) and "on_bad_row" not in str(caught.value)


def test_a_row_that_lacks_what_others_have_may_be_skipped(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "n": 1}\n{"text": "b"}\n')
    source = SourceConfig(str(path), where={"n": 1}, epochs=1)
    config = DataConfig(train=[source], shuffle=False)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: column 'n'.*\(`on_bad_row: skip`"):
        list(TrainLoader(config, pico_tokenizer, 1, seed=0))


def test_a_misspelt_map_is_told_by_its_source_before_anything_is_read(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    source = SourceConfig(f"{tmp_path}/not-there.jsonl", format="gsm8k", columns={"answr": "a"})
    config = DataConfig(train=[source])
    with pytest.raises(ConfigError, match=r"source 'not-there': .*'answr' .* mean 'answer'"):
        TrainLoader(config, pico_tokenizer, 1, seed=0)
    with pytest.raises(ConfigError, match=r"source 'not-there': .*'answr' .* mean 'answer'"):
        eval_batches(source, pico_tokenizer, config, 1)


def test_hashes_are_of_content() -> None:
    day = datetime.date(2024, 2, 29)
    assert content_hash({"a": [1, None], "b": None}) == content_hash({"a": [1, None]})
    assert content_hash([1, None]) != content_hash([1])
    assert content_hash(np.arange(2000)) == content_hash(list(range(2000)))
    assert content_hash(day) == content_hash(str(day))
    assert content_hash(b"\xff") != content_hash(b"\xfe")
    assert content_hash("x", "split") != content_hash("x", "sample")
    with pytest.raises(DataError, match="object cannot be hashed"):
        content_hash({"file": object()})
    # Fixed for ever: what was held out once is held out by every release.
    assert content_hash({"text": "Grüße"}, "split") == 14547039869902967200


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"where": {"lang": ["en"]}}, "column 'lang', named in `where`, is missing .*'language'"),
        ({"part": "train", "group_by": "who"}, "column 'who', named in `group_by`, is missing"),
        ({"columns": {"text": "body"}}, "column 'body', named in `columns`, is missing"),
        ({"difficulty": "level"}, "column 'level', named in `difficulty`, is missing"),
    ],
)
def test_a_column_that_the_first_row_lacks_is_told_before_a_model_is_loaded(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"words": "one", "language": "en"}) + "\n")
    source = SourceConfig(f"{tmp_path}/a.jsonl", **fields)
    with pytest.raises(DataError, match=f"^source 'a': .*a.jsonl:1: {message}"):
        check_first_rows(DataConfig([source]))
    run = RunConfig.from_dict(
        {
            "model": {"model_name_or_path": str(tmp_path / "no model")},
            "data": {"train": [{"path": source.path, **fields}]},
        }
    )
    with pytest.raises(DataError, match=message):
        make_base(run)
    source.on_bad_row = "skip"
    check_first_rows(DataConfig([source]))


def test_a_source_that_is_not_here_is_not_opened_beforehand() -> None:
    sources = [SourceConfig(path, where={"lang": "en"}) for path in ("a/b", "memory://a.jsonl")]
    check_first_rows(DataConfig(sources))
