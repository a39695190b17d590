"""What every kind of chunks promises, whatever lies behind it."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.data.sources.making import WRITERS, flat, many, write

from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources import Chunks, dataset_chunks, open_chunks, opening, ranges

ROWS = many(300)
Make = Callable[[Path, list[dict[str, Any]]], SourceConfig]


def _file(name: str, **options: Any) -> Make:
    return lambda folder, rows: SourceConfig(str(write(folder / name, rows)), **options)


def _saved(folder: Path, rows: list[dict[str, Any]]) -> SourceConfig:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(folder / "saved", num_shards=3)
    return SourceConfig(str(folder / "saved"))


def _saved_slice(folder: Path, rows: list[dict[str, Any]]) -> SourceConfig:
    source = _saved(folder, rows)
    source.split = "train[10%:]"
    return source


def _text(folder: Path, rows: list[dict[str, Any]]) -> SourceConfig:
    for number, row in enumerate(rows):
        (folder / f"{number:03}.txt").write_text(row["text"])
    return SourceConfig(str(folder))


def _mixed(folder: Path, rows: list[dict[str, Any]]) -> SourceConfig:
    write(folder / "a.csv", rows[:100])
    write(folder / "a.jsonl", rows[100:])
    return SourceConfig(f"{folder}/*")


def _hub(streaming: bool) -> Make:
    def make(folder: Path, rows: list[dict[str, Any]]) -> SourceConfig:
        pytest.importorskip("datasets")
        data = folder / "hub" / "data"
        data.mkdir(parents=True)
        for part in range(3):
            path = write(folder / "a.parquet", rows[part::3])
            path.rename(data / f"train-{part:05}-of-00003.parquet")
        return SourceConfig(str(folder / "hub"), source_type="hub", streaming=streaming)

    return make


KINDS: dict[str, Make] = {
    **{name: _file(name) for name in WRITERS},
    "small a.jsonl": _file("a.jsonl"),
    "first few": _file("a.jsonl", max_rows=7),
    "first of lines": _file("a.jsonl", max_rows=250),
    "first of groups": _file("a.parquet", max_rows=250),
    "first of mapped": _file("stream.arrow", max_rows=250),
    "text": _text,
    "mixed": _mixed,
    "saved": _saved,
    "saved slice": _saved_slice,
    "hub": _hub(streaming=False),
    "hub streamed": _hub(streaming=True),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A kind's name; sources count as large, ranges are small, nothing is held in memory."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    if not request.param.startswith("small"):
        monkeypatch.setattr(opening, "SMALL_BYTES", -1)
    if request.param.startswith("first of"):
        from controlllm.data.sources import chunks

        monkeypatch.setattr(chunks, "MEMORY_BYTES", 0)
    init = ranges.RangeChunks.__init__
    monkeypatch.setattr(
        ranges.RangeChunks, "__init__", lambda self, files, source: init(self, files, source, 999)
    )
    return request.param


def _opened(folder: Path, kind: str, rows: list[dict[str, Any]] = ROWS) -> Chunks:
    folder.mkdir()
    return open_chunks(KINDS[kind](folder, rows), 60.0)


def _read(chunks: Chunks, chunk: int, start: int = 0) -> list[Any]:
    return [row for _, row in chunks.read(chunk, start)]


def test_the_laws_of_chunks(tmp_path: Path, kind: str) -> None:
    chunks = _opened(tmp_path / "a", kind)
    by_chunk = [_read(chunks, chunk) for chunk in range(len(chunks))]
    rows = flat(by_chunk)

    # Rows: all of them, in order, the same whichever way they are read.
    texts = [row["text"] for row in rows]
    wanted = [row["text"] for row in ROWS]
    if kind.startswith("hub"):
        wanted = [text for part in range(3) for text in wanted[part::3]]
    first = {"first few": 7, "saved slice": None}.get(kind, 250 if "first of" in kind else None)
    assert texts == (wanted[30:] if kind == "saved slice" else wanted[:first])
    assert [row for _, row in chunks.rows()] == rows
    assert chunks.num_rows in (None, len(rows))
    assert chunks.by_row == all(len(part) == 1 for part in by_chunk) or len(chunks) == 1
    assert [chunks.count(chunk) for chunk in range(len(chunks))] == [len(p) for p in by_chunk]

    # Entering a chunk anywhere.
    for chunk in {0, len(chunks) // 2, len(chunks) - 1}:
        size = len(by_chunk[chunk])
        for start in {0, 1, size // 2, max(0, size - 1), size, size + 3}:
            assert _read(chunks, chunk, start) == by_chunk[chunk][start:]

    # Places tell rows apart.
    places = [str(place) for chunk in range(len(chunks)) for place, _ in chunks.read(chunk)]
    assert len(set(places)) == len(rows)

    # Another process sees the same.
    other = pickle.loads(pickle.dumps(chunks))
    assert (len(other), other.num_rows, other.num_bytes) == (
        len(chunks),
        chunks.num_rows,
        chunks.num_bytes,
    )
    assert (other.fingerprint, other.stamp) == (chunks.fingerprint, chunks.stamp)
    assert _read(other, len(other) - 1) == by_chunk[-1]


def test_fingerprints_tell_content_apart_not_places(tmp_path: Path, kind: str) -> None:
    chunks = _opened(tmp_path / "a", kind)
    same = _opened(tmp_path / "b", kind)
    changed = [dict(row) for row in ROWS]
    changed[0]["text"] = changed[0]["text"].replace("x", "y", 1)
    other = _opened(tmp_path / "c", kind, changed)
    assert chunks.fingerprint == same.fingerprint != other.fingerprint
    assert chunks.fingerprint == open_again(tmp_path / "a", kind).fingerprint


def open_again(folder: Path, kind: str) -> Chunks:
    shutil.rmtree(folder)
    return _opened(folder, kind)


def test_no_such_chunk(tmp_path: Path, kind: str) -> None:
    from controlllm.common.errors import DataError

    chunks = _opened(tmp_path / "a", kind)
    for chunk in (-1, len(chunks)):
        with pytest.raises(DataError, match="there is no"):
            list(chunks.read(chunk))


def test_touching_a_file_changes_the_stamp_only(tmp_path: Path) -> None:
    import os

    source = _file("a.jsonl")(tmp_path, ROWS)
    before = open_chunks(source, 60.0)
    os.utime(source.path, (1, 1))
    after = open_chunks(source, 60.0)
    assert before.fingerprint == after.fingerprint and before.stamp != after.stamp


def test_options_that_change_rows_change_the_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    variants = [{}, {"text_unit": "line"}, {"max_row_bytes": 100}, {"text_unit": "paragraph"}]
    found = [open_chunks(SourceConfig(str(path), **options), 60.0) for options in variants]
    assert len({chunks.fingerprint for chunks in found}) == len(variants)


def test_a_change_in_the_middle_of_a_large_file_of_the_same_size(tmp_path: Path) -> None:
    source = _file("a.jsonl")(tmp_path, many(40_000, 150))
    before = open_chunks(source, 60.0).fingerprint
    size = Path(source.path).stat().st_size
    with open(source.path, "r+b") as file:
        file.seek(size // 2)
        file.write(b"?")
    assert open_chunks(source, 60.0).fingerprint != before


def test_chunks_of_a_dataset_object() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    chunks = dataset_chunks(data, "mine")
    assert chunks.by_row and len(chunks) == 300
    assert [row for _, row in chunks.rows()] == ROWS
    assert list(chunks.read(7)) == [("mine, row 7", ROWS[7])]
    shuffled = dataset_chunks(data.shuffle(seed=1).select(range(50)).with_format("numpy"))
    assert sorted(row["number"] for _, row in shuffled.rows()) != list(range(50))
    assert all(isinstance(row["number"], int) for _, row in shuffled.rows())
    again = dataset_chunks(datasets.Dataset.from_list(ROWS))
    assert again.fingerprint == chunks.fingerprint != shuffled.fingerprint
    assert pickle.loads(pickle.dumps(shuffled)).fingerprint == shuffled.fingerprint
