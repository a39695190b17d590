"""Folders of `save_to_disk`, and the slices of splits that `datasets` knows."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.sources.making import many, rows_of

from controlllm.common.errors import ConfigError, DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources import open_chunks
from controlllm.data.sources.splits import parse_split

datasets = pytest.importorskip("datasets")
ROWS = many(120)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A dictionary of two splits, `train` in three files."""
    data = datasets.Dataset.from_list(ROWS)
    splits = datasets.DatasetDict(train=data, test=data.select([3, 1]))
    splits.save_to_disk(tmp_path / "saved", num_shards={"train": 3, "test": 1})
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ROWS),
        ("test", [ROWS[3], ROWS[1]]),
        ("train[:10%]", ROWS[:12]),
        ("train[-5:]", ROWS[-5:]),
        ("test+train[100:103]", [ROWS[3], ROWS[1], *ROWS[100:103]]),
    ],
)
def test_splits_and_slices(saved: Path, split: str, expected: list[Any]) -> None:
    assert rows_of(saved, split=split) == expected
    chunks = open_chunks(SourceConfig(str(saved), split=split, max_rows=7), 60.0)
    assert chunks.by_row and [row for _, row in chunks.rows()] == expected[:7]


def test_places_are_those_of_the_files(saved: Path) -> None:
    places = [str(place) for place, _ in open_chunks(SourceConfig(str(saved))).rows()]
    assert places[0] == f"{saved}/train/data-00000-of-00003.arrow, row 0"
    assert places[119] == f"{saved}/train/data-00002-of-00003.arrow, row 39"
    assert len(set(places)) == 120


def test_a_single_split_and_one_without_a_name(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    assert rows_of(tmp_path / "one") == ROWS
    assert rows_of(tmp_path / "one", split="train[50%:]") == ROWS[60:]
    data.select([5, 4]).save_to_disk(tmp_path / "chosen")
    assert rows_of(tmp_path / "chosen") == [ROWS[5], ROWS[4]]


def test_what_is_missing_is_named(saved: Path) -> None:
    with pytest.raises(DataError, match=r"saved: no split 'dev'; it has \['test', 'train'\]"):
        rows_of(saved, split="dev")
    with pytest.raises(ConfigError, match=r"split='train\[:x\]' is not understood"):
        rows_of(saved, split="train[:x]")
    with pytest.raises(DataError, match="holds no rows"):
        rows_of(saved, split="train[5:5]")
    (saved / "train" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00003\.arrow is missing; save or copy"):
        rows_of(saved)
    (saved / "test" / "state.json").unlink()
    with pytest.raises(DataError, match=r"state\.json is missing"):
        rows_of(saved, split="test")


def test_no_saved_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="is no folder that `save_to_disk` wrote"):
        rows_of(tmp_path, source_type="saved")


SPLIT = st.sampled_from(["train", "test"])
ROW = st.none() | st.integers(-130, 130).map(str)
PERCENT = st.none() | st.integers(-100, 100).map(lambda percent: f"{percent}%")
PART = st.tuples(SPLIT, ROW, ROW) | st.tuples(SPLIT, PERCENT, PERCENT)


@settings(max_examples=300, deadline=None)
@given(st.lists(PART, min_size=1, max_size=3))
def test_slices_mean_what_they_mean_in_datasets(parts: list[tuple[str, Any, Any]]) -> None:
    sizes = {"train": 117, "test": 23}
    spec = "+".join(f"{name}[{start or ''}:{stop or ''}]" for name, start, stop in parts)
    try:
        absolute = datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
    except (ValueError, AssertionError):  # Bounds outside of the split: it refuses, we clip.
        return
    theirs = [(part.splitname, list(range(part.from_, part.to))) for part in absolute]
    assert [(name, list(rows)) for name, rows in parse_split(spec, sizes)] == theirs


def test_a_slice_by_rows_and_percent_is_refused() -> None:
    with pytest.raises(ConfigError, match="not understood"):
        parse_split("train[1:10%]", {"train": 100})
