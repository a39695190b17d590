"""Writes the same rows as files of every type."""

import gzip
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources import open_chunks

__all__ = ["ROWS", "WRITERS", "chunk_rows", "flat", "jsonl", "many", "rows_of", "write"]

ROWS = [{"text": "one"}, {"text": "twö 二"}, {"text": "three, with\nbreak"}]
SCHEMA = {
    "type": "record",
    "name": "Row",
    "fields": [{"name": "text", "type": "string"}, {"name": "number", "type": ["null", "int"]}],
}


def many(count: int, size: int = 40) -> list[dict[str, Any]]:
    """Rows that differ, of about `size` bytes."""
    return [{"text": f"row {i} " + "é" * (i % 7) + "x" * size, "number": i} for i in range(count)]


def rows_of(path: object, **settings: Any) -> list[Any]:
    """All rows of a source, in order, without their places."""
    return [row for _, row in open_chunks(SourceConfig(str(path), **settings)).rows()]


def chunk_rows(path: object, **settings: Any) -> list[list[Any]]:
    """The rows of each chunk."""
    chunks = open_chunks(SourceConfig(str(path), **settings), 60.0)
    return [[row for _, row in chunks.read(chunk)] for chunk in range(len(chunks))]


def flat(lists: Iterable[Iterable[Any]]) -> list[Any]:
    """All elements in one list."""
    return list(itertools.chain.from_iterable(lists))


def jsonl(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    data = jsonl(rows)
    if path.suffix == ".gz":
        data = gzip.compress(data, 1, mtime=0)
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(data)
    else:
        path.write_bytes(data)


def write_parquet(path: Path, rows: Sequence[Any], group: int | None = None) -> None:
    size = group or max(1, len(rows) // 5)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=size)


def write_arrow(path: Path, rows: Sequence[Any], stream: bool, codec: str | None = None) -> None:
    table = pa.Table.from_pylist(list(rows))
    options = pa.ipc.IpcWriteOptions(compression=codec)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=max(1, len(rows) // 5))


def write_avro(path: Path, rows: Sequence[Any], codec: str = "deflate") -> None:
    import fastavro

    with path.open("wb") as file:
        fastavro.writer(file, SCHEMA, rows, codec=codec, sync_interval=1000, sync_marker=b"m" * 16)


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    import csv

    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, rows: Sequence[Any]) -> None:
    data = json.dumps(list(rows), indent=1, ensure_ascii=False).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


WRITERS: dict[str, Callable[[Path, Sequence[Any]], None]] = {
    "a.jsonl": write_lines,
    "a.ndjson": write_lines,
    "bom.jsonl": lambda path, rows: _put(path, b"\xef\xbb\xbf" + jsonl(rows)),
    "windows.jsonl": lambda path, rows: _put(path, jsonl(rows).replace(b"}\n", b"}\r\n\r\n")),
    "a.jsonl.gz": write_lines,
    "a.jsonl.zst": write_lines,
    "a.json": write_json,
    "a.json.gz": write_json,
    "nested.json": lambda path, rows: _put(
        path, json.dumps({"version": 1, "data": rows, "tags": []}).encode()
    ),
    "lines.json": write_lines,
    "a.parquet": write_parquet,
    "a.csv": write_csv,
    "a.tsv": write_csv,
    "file.arrow": lambda path, rows: write_arrow(path, rows, stream=False),
    "stream.arrow": lambda path, rows: write_arrow(path, rows, stream=True),
    "lz4.feather": lambda path, rows: write_arrow(path, rows, stream=False, codec="lz4"),
    "zstd-stream.arrow": lambda path, rows: write_arrow(path, rows, stream=True, codec="zstd"),
    "a.avro": write_avro,
    "a.avro.gz": lambda path, rows: _packed(path, rows, write_avro),
    "a.arrow.gz": lambda path, rows: _packed(
        path, rows, lambda place, all_rows: write_arrow(place, all_rows, stream=True)
    ),
    "plain.avro": lambda path, rows: write_avro(path, rows, "null"),
}
"""File name -> writer of rows into it; all rows have `text`, and perhaps `number`."""


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _packed(path: Path, rows: Sequence[Any], writer: Callable[[Path, Sequence[Any]], None]) -> None:
    writer(path, rows)
    path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def write(path: Path, rows: Sequence[Any]) -> Path:
    """Write rows in the way that the file's name tells."""
    WRITERS[path.name](path, rows)
    return path
