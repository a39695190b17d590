"""What a source chooses once all rows are known: no duplicates, so many rows, easy ones first."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.data import DataConfig, Example, SourceConfig, SourceStats, TokenStore, TrainLoader
from controlllm.data.cache.prepare import prepare_source
from controlllm.data.cache.whole_source import Selection
from controlllm.data.examples.encode import RowEncoder
from controlllm.data.loader.stream import Stream
from controlllm.data.sources import open_chunks

Prepare = Any


@pytest.fixture
def prepare(tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase) -> Prepare:
    """`prepare(rows, **source)`: the store of a source of such rows."""

    def make(rows: list[Any], config: dict[str, Any] | None = None, **options: Any) -> TokenStore:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        source = SourceConfig(str(path), **options)
        whole = DataConfig(
            train=[source],
            cache_dir=str(tmp_path / "cache"),
            **{"max_length": 32, **(config or {})},
        )
        encoder = RowEncoder(source, pico_tokenizer, whole, training=True)
        return prepare_source(encoder, open_chunks(source))

    return make


def texts(store: TokenStore, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [
        tokenizer.decode(store[i].input_ids, skip_special_tokens=True) for i in range(len(store))
    ]


def test_the_first_of_equal_rows_is_kept(
    prepare: Prepare, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"text": t, "id": i} for i, t in enumerate(["b", "a", "b", "c", "a", "b"])]
    store = prepare(rows, deduplicate=True)
    assert texts(store, pico_tokenizer) == ["b", "a", "c"]
    assert (store.stats.duplicates, store.stats.rows, store.stats.examples) == (3, 6, 3)
    chat = [
        {"prompt": "hi", "completion": "ho"},
        {"prompt": "h", "completion": "iho"},  # other targets
        {"prompt": "hi", "completion": "ho"},
    ]
    assert len(prepare(chat, deduplicate=True)) == 2


@pytest.mark.parametrize("wanted", [1, 7, 20, 30, 99])
def test_so_many_rows_exactly(
    prepare: Prepare, pico_tokenizer: PreTrainedTokenizerBase, wanted: int
) -> None:
    """Ten rows thrice: equal rows have equal hashes, the number is exact all the same."""
    rows = [{"text": f"row {i % 10}"} for i in range(30)]
    store = prepare(rows, sample_rows=wanted)
    assert len(store) == min(wanted, 30)
    assert store.stats.filtered == 30 - len(store)
    assert store.stats.tokens == store.tokens
    again = prepare(rows[::-1], sample_rows=wanted)
    assert sorted(texts(store, pico_tokenizer)) == sorted(texts(again, pico_tokenizer))
    few = prepare(rows, sample_rows=wanted, deduplicate=True)
    assert len(few) == len(set(texts(few, pico_tokenizer))) == min(wanted, 10)


@given(
    lengths=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=60),
    phases=st.integers(1, 8),
    by_column=st.booleans(),
    data=st.data(),
)
@settings(deadline=None)
def test_phases_have_equal_mass_and_rise(
    lengths: list[list[int]], phases: int, by_column: bool, data: st.DataObject
) -> None:
    """No cut between phases is further from its place than one row is long."""
    ranks = data.draw(st.permutations(range(len(lengths))))
    selection = Selection(
        SourceConfig("x", difficulty="rank" if by_column else "length", phases=phases)
    )
    stats = SourceStats()
    for pieces, rank in zip(lengths, ranks, strict=True):
        examples = [Example(np.ones(n, np.int32), np.ones(n, np.int32)) for n in pieces]
        selection.add({"rank": rank}, examples)
    index, sizes = selection.choose(stats)
    assert index is not None and sizes is not None
    piece_of = [(row, n) for row, pieces in enumerate(lengths) for n in pieces]
    assert sorted(index) == list(range(len(piece_of)))
    rows = [piece_of[i][0] for i in index]
    hardness = [ranks[row] if by_column else sum(lengths[row]) for row in rows]
    assert hardness == sorted(hardness)
    assert sum(sizes) == len(index) and len(sizes) <= phases and min(sizes) > 0
    total, longest = sum(map(sum, lengths)), max(map(sum, lengths))
    masses = np.add.reduceat([piece_of[i][1] for i in index], np.cumsum([0, *sizes[:-1]]))
    assert stats.tokens == total == masses.sum()
    if len(sizes) == phases:
        assert np.abs(masses - total / phases).max() <= longest
    ends = [0, *np.cumsum(sizes)]
    for cut in ends[1:-1]:
        assert rows[cut - 1] != rows[cut]  # a row is never cut between phases


def test_difficulty_is_a_number(prepare: Prepare) -> None:
    numbers: list[Any] = [3, 1.5, "2", "1e3", -7]
    rows = [{"text": f"{i}", "level": value} for i, value in enumerate(numbers)]
    store = prepare(rows, difficulty="level", phases=1)
    assert [chr(int(store[i].input_ids[1]) - 3) for i in range(5)] == ["4", "1", "2", "0", "3"]
    for bad in (None, "hard", [1], True, float("nan"), 10**400):
        rows[2]["level"] = bad
        with pytest.raises(DataError, match=r"rows\.jsonl:3: column 'level'.* not a number"):
            prepare(rows, difficulty="level")
    skipped = prepare(rows, difficulty="level", on_bad_row="skip")
    assert (len(skipped), skipped.stats.bad_rows, skipped.stats.examples) == (4, 1, 4)


def test_easy_rows_are_drawn_first_anew_in_each_epoch(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "rows.jsonl"
    lengths = [3 + (i * 7) % 40 for i in range(200)]
    path.write_text("".join(json.dumps({"text": "x" * n}) + "\n" for n in lengths))
    source = SourceConfig(str(path), difficulty="length", phases=4)
    config = DataConfig(train=[source], max_length=64, cache_dir=str(tmp_path / "cache"))
    loader = TrainLoader(config, pico_tokenizer, 1, seed=0)
    stream = Stream(loader.feeds[0], lane=0, lanes=1, seed=0)
    epochs = [[stream.draw() for _ in range(200)] for _ in range(2)]
    sizes = loader.feeds[0].chunks.phases  # type: ignore[attr-defined]  # of a prepared source
    orders = []
    for drawn in epochs:
        seen = [len(draw.example) for draw in drawn if draw is not None]
        bounds = np.cumsum([0, *sizes])
        parts = [seen[a:b] for a, b in pairwise(bounds)]
        assert Counter(seen) == Counter(n + 2 for n in lengths)
        assert all(max(a) <= min(b) for a, b in pairwise(parts))
        masses = [sum(part) for part in parts]
        assert max(masses) - min(masses) <= 2 * 44
        assert any(part != sorted(part) for part in parts)
        orders.append(seen)
    assert orders[0] != orders[1]


def test_up_sampling_is_a_matter_of_weight(
    prepare: Prepare, tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    """`sample: 3` stores nothing twice, and draws the source three times as often."""
    rows = [{"text": f"row {i}"} for i in range(20)]
    assert len(prepare(rows, sample=3.0, deduplicate=True)) == 20
    sources = [
        SourceConfig(str(tmp_path / "rows.jsonl"), name=name, sample=sample)
        for name, sample in (("once", 1.0), ("thrice", 3.0))
    ]
    config = DataConfig(train=sources, max_length=32, mix_by="rows")
    loader = TrainLoader(config, pico_tokenizer, 1, seed=0)
    for _ in range(60):
        next(loader)
    once, thrice = (loader.progress()[key]["examples"] for key in ("0:once", "1:thrice"))
    assert abs(thrice - 3 * once) <= 3
    assert loader.size().examples == 80


FATES = {
    "good": lambda i: {"text": f"good {i}", "level": i, "lang": "en"},
    "twin": lambda i: {"text": "twin", "level": 1, "lang": "en"},
    "long": lambda i: {"text": f"long {i} " * 9, "level": 2, "lang": "en"},
    "silent": lambda i: {"messages": [{"role": "user", "content": f"{i}"}], "lang": "en"},
    "broken": lambda i: '{"text": ',
    "empty": lambda i: {"text": "", "level": 1, "lang": "en"},
    "other": lambda i: {"text": f"other {i}", "level": 1, "lang": "fr"},
    "unlevelled": lambda i: {"text": f"none {i}", "level": None, "lang": "en"},
}  # fmt: skip


@given(
    fates=st.lists(st.sampled_from(sorted(FATES)), max_size=40),
    long_text=st.sampled_from(["split", "truncate", "drop"]),
    options=st.fixed_dictionaries(
        {},
        optional={
            "deduplicate": st.just(True),
            "sample_rows": st.integers(1, 30),
            "difficulty": st.sampled_from(["level", "length"]),
            "part": st.just("train"),
            "sample": st.sampled_from([0.5, 2.0]),
        },
    ),
)
@settings(deadline=None, max_examples=60)
def test_every_row_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory,
    pico_tokenizer: PreTrainedTokenizerBase,
    fates: list[str],
    long_text: str,
    options: dict[str, Any],
) -> None:
    folder = tmp_path_factory.mktemp("fates")
    rows = [FATES[fate](i) for i, fate in enumerate(["good", *fates])]
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    source = SourceConfig(
        str(folder / "rows.jsonl"), on_bad_row="skip", where={"lang": ["en"]}, **options
    )
    config = DataConfig(max_length=32, long_text=long_text, cache_dir=str(folder / "cache"))
    encoder = RowEncoder(source, pico_tokenizer, config)
    try:
        store = prepare_source(encoder, open_chunks(source))
    except DataError as error:
        assert "holds no example" in str(error)
        return
    stats = store.stats
    left_out = (stats.filtered, stats.dropped, stats.without_targets, stats.duplicates)
    bos = sum(1 for i in range(len(store)) if store[i].input_ids[0] == 1)  # <s>
    first_pieces = bos - stats.repeated_bos
    assert stats.rows == len(rows)
    assert first_pieces + sum(left_out) + stats.bad_rows == len(rows)
    assert stats.examples == len(store)
    assert stats.tokens == store.tokens == sum(len(store[i]) for i in range(len(store)))
    targets = sum(int((store[i].labels != -100).sum()) for i in range(len(store)))
    assert stats.targets == targets
