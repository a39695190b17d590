"""Data sets by name: `datasets` loads them, here from a folder laid out like one of the Hub's."""

import pickle
from pathlib import Path

import pytest
from tests.data.sources.making import many, rows_of, write_parquet

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources import open_chunks
from controlllm.data.sources.hub import DatasetChunks, ShardChunks

pytest.importorskip("datasets")
ROWS = many(90)

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: data/train-*.parquet}
  - {split: test, path: data/test-*.parquet}
- config_name: other
  data_files: other/*.parquet
---
A data set.
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "set"
    (place / "data").mkdir(parents=True)
    (place / "other").mkdir()
    (place / "README.md").write_text(CARD)
    for part in range(3):
        rows = ROWS[part * 30 : part * 30 + 30]
        write_parquet(place / "data" / f"train-{part:05}-of-00003.parquet", rows)
    write_parquet(place / "data" / "test-00000-of-00001.parquet", ROWS[:5])
    write_parquet(place / "other" / "a.parquet", ROWS[:3])
    return str(place)


def test_subsets_splits_and_slices(folder: str) -> None:
    def read(**options: object) -> list:
        return rows_of(folder, source_type="hub", **options)

    assert read(subset="main") == ROWS
    assert read(subset="main", split="test") == ROWS[:5]
    assert read(subset="main", split="train[:10%]") == ROWS[:9]
    assert read(subset="main", split="train[-3:]+test") == ROWS[-3:] + ROWS[:5]
    assert read(subset="other") == ROWS[:3]
    assert read(subset="main", max_rows=7) == ROWS[:7]


def test_downloaded_rows_are_read_in_any_order(folder: str) -> None:
    source = SourceConfig(folder, source_type="hub", subset="main")
    chunks = open_chunks(source, 60.0)
    assert isinstance(chunks, DatasetChunks) and chunks.by_row and len(chunks) == 90
    other = pickle.loads(pickle.dumps(chunks))
    assert [next(other.read(row))[1] for row in (89, 0, 45)] == [ROWS[89], ROWS[0], ROWS[45]]
    assert next(other.read(45))[0] == f"{folder}[train], row 45"


def test_shards_are_streamed(folder: str) -> None:
    source = SourceConfig(folder, source_type="hub", subset="main", streaming=True)
    chunks = open_chunks(source, 60.0)
    assert isinstance(chunks, ShardChunks) and len(chunks) == 3 and chunks.num_rows is None
    assert [row for _, row in chunks.read(1, 28)] == ROWS[58:60]
    assert [place for place, _ in chunks.read(1, 28)] == [
        f"{folder}[train], shard 1, row {row}" for row in (28, 29)
    ]
    assert [row for _, row in open_chunks(source).rows()] == ROWS
    source.max_rows = 40
    assert [row for _, row in open_chunks(source, 60.0).rows()] == ROWS[:40]


def test_what_cannot_be_streamed_or_found(folder: str) -> None:
    with pytest.raises(DataError, match=r"split='train\[:5\]' cannot be streamed.*`max_rows`"):
        rows_of(folder, source_type="hub", split="train[:5]", streaming=True)
    with pytest.raises(DataError, match=r"cannot be loaded \(.*dev"):
        rows_of(folder, source_type="hub", subset="main", split="dev")
    with pytest.raises(DataError, match=r"cannot be loaded \(.*none"):
        rows_of(folder, source_type="hub", subset="none")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_name_that_cannot_be_loaded(streaming: bool) -> None:
    with pytest.raises(DataError, match=r"as a Hub name it cannot be loaded .*HF_HUB_OFFLINE"):
        rows_of("nobody-at-all/no-such-data", streaming=streaming)


def test_a_shard_that_breaks_is_named(folder: str) -> None:
    source = SourceConfig(folder, source_type="hub", subset="main", streaming=True)
    chunks = open_chunks(source, 60.0)
    broken = Path(folder) / "data" / "train-00002-of-00003.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=r"\[train\], shard 2 cannot be read"):
        list(chunks.read(2))
