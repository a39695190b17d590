"""What is checked before it is unpacked still reads as before; what is refused says why.

Files that explode are in tests/trust/test_strangers.py.
"""

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.sources.making import many, rows_of

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources import opening
from controlllm.data.sources.avro import check_schema, unpack
from controlllm.data.sources.pages import CheckedPages, columns_of

TEXT = b"a text that is long enough to be packed, " * 50


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "null": bytes,
    "deflate": _deflate,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstandard": lambda data: pa.compress(data, "zstd", asbytes=True),
    "snappy": lambda data: (
        pa.compress(data, "snappy", asbytes=True) + struct.pack(">I", zlib.crc32(data))
    ),
    "lz4": lambda data: struct.pack("<I", len(data)) + pa.compress(data, "lz4_raw", asbytes=True),
}


@pytest.mark.parametrize("codec", PACK)
def test_codecs_of_avro(codec: str) -> None:
    packed = PACK[codec](TEXT)
    assert unpack(codec, packed, len(TEXT)) == TEXT
    if codec != "null":
        assert len(unpack(codec, packed, 100)) == 101  # More than that: enough to refuse it.
        with pytest.raises((ValueError, EOFError, OSError)):
            unpack(codec, packed[:-9], len(TEXT))
    with pytest.raises(ValueError, match="codec 'zip' is not known; known: null, deflate"):
        unpack("zip", packed, 1)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}, "without any byt"),
        ({"type": "array", "items": {"type": "record", "name": "E", "fields": []}}, "without any"),
        ({"type": "map", "values": ["null", "Row"]}, "'Row' is a part of itself"),
        ("null", "its records hold nothing"),
    ],
)
def test_schemas_of_avro_that_are_refused(kind: Any, message: str) -> None:
    schema = {"type": "record", "name": "Row", "fields": [{"name": "a", "type": kind}]}
    with pytest.raises(DataError, match=message):
        check_schema(schema)


def test_schemas_of_avro_that_are_read() -> None:
    tag = {"type": "enum", "name": "Tag", "symbols": ["a"]}
    fields = [
        {"name": "tags", "type": {"type": "array", "items": tag}},
        {"name": "again", "type": ["null", "Tag"]},
        {"name": "nothing", "type": "null"},
        {"name": "when", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "map", "type": {"type": "map", "values": "null"}},
    ]
    assert check_schema({"type": "record", "name": "Row", "fields": fields})


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
        {"data_page_size": 64, "write_page_index": True, "dictionary_pagesize_limit": 128},
    ],
    ids=["dictionary", "plain", "delta", "small pages"],
)
def test_pages_of_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, codec: str, options: Any
) -> None:
    monkeypatch.setattr(opening, "SMALL_BYTES", -1)
    rows = [row | {"tags": ["x", row["text"]][: i % 3], "by": {"n": i}, "kind": "ab"[i % 2]}
            for i, row in enumerate(many(300))]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    table = table.append_column("code", pa.array([b"abc"] * 300, pa.binary(3)))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=120, compression=codec,
                   data_page_version=version, **options)  # fmt: skip
    assert rows_of(tmp_path / "a.parquet") == [row | {"code": b"abc"} for row in rows]


def test_long_lists_of_parquet_are_refused_by_the_heads_of_their_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SMALL_BYTES", -1)
    path = tmp_path / "a.parquet"
    lists = pa.array([[1] * 10**6 + [2, 3]], pa.list_(pa.int64()))
    pq.write_table(pa.table({"a": lists}), path, compression="zstd")
    with pytest.raises(DataError, match="its lists in one row group would unpack to 8,000,016"):
        rows_of(path, max_row_bytes=2**16)
    assert "the row has 8," in str(rows_of(path, max_row_bytes=2**20)[0])


def test_pages_of_parquet_that_are_not_as_the_footer_says(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x"] * 9}), path)
    (column,) = columns_of(pq.read_metadata(path), 0)
    for lie in ({"has_dictionary": False}, {"grows": True, "unpacked": 3}):
        with path.open("rb") as file:
            pages = CheckedPages(file, "a", [replace(column, **lie)], SourceConfig("a"))
            with pytest.raises(DataError, match="column 'a': its pages are not as the footer says"):
                pages.read()


def test_arrow_values_that_are_stored_in_odd_ways(tmp_path: Path) -> None:
    table = pa.table(
        {
            "kind": pa.array(["a", None, "b"] * 5).dictionary_encode(),
            "size": pa.array([1.5, 2.5, None] * 5).dictionary_encode(),
            "pair": pa.array([[1, 2], None, [3, 4]] * 5, pa.list_(pa.int64(), 2)),
            "none": pa.nulls(15),
            "flags": pa.array([[True, False], [], None] * 5),
            "view": pa.array(["short", "a view of a longer text", None] * 5, pa.string_view()),
            "map": pa.array([[("k", True)], [], None] * 5, pa.map_(pa.string(), pa.bool_())),
        }
    )
    for codec in (None, "zstd"):
        with pa.ipc.new_file(
            str(tmp_path / "a.arrow"),
            table.schema,
            options=pa.ipc.IpcWriteOptions(compression=codec),
        ) as writer:
            writer.write_table(table, max_chunksize=4)
        assert rows_of(tmp_path / "a.arrow") == table.to_pylist()
    odd = pa.RunEndEncodedArray.from_arrays(pa.array([10**9], pa.int32()), pa.array(["x"]))
    with pa.ipc.new_file(str(tmp_path / "b.arrow"), pa.schema([("a", odd.type)])) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([odd.slice(0, 10**6)], names=["a"]))
    with pytest.raises(DataError, match=r"a column of type run_end_encoded.* is not read"):
        rows_of(tmp_path / "b.arrow")


def test_arrow_texts_with_places_outside_of_their_file_are_bad_rows(tmp_path: Path) -> None:
    texts = pa.array(["one", "two", "three"])
    path = tmp_path / "a.arrow"
    with pa.ipc.new_file(str(path), pa.schema([("text", pa.string())])) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([texts], names=["text"]))
    data = bytearray(path.read_bytes())
    at = data.index(np.array([0, 3, 6, 11], dtype=np.int32).tobytes())
    data[at + 4 : at + 8] = struct.pack("<i", 2**30)
    path.write_bytes(data)
    rows = rows_of(path)
    assert [isinstance(row, DataError) for row in rows] == [True, True, False]
    assert rows[2] == {"text": "three"}
