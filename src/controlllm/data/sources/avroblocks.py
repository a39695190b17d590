"""Blocks of Avro files: unpacked no further than they may be, their records read one by one."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from controlllm.common.errors import DataError

__all__ = ["check_schema", "records", "unpack"]


def unpack(codec: str, data: bytes, most: int) -> bytes:
    """The bytes of a block; one more than `most` where there are more than that.

    Raises:
        ValueError: the codec is not known, or the data is broken.
    """
    if codec not in _CODECS:
        raise ValueError(f"the codec {codec!r} is not known; known: {', '.join(_CODECS)}")
    return _CODECS[codec](data, most + 1)


def _inflate(data: bytes, most: int) -> bytes:
    stream = zlib.decompressobj(-15)
    return _whole(stream.decompress(data, most), stream.eof, most)


def _bunzip(data: bytes, most: int) -> bytes:
    stream = bz2.BZ2Decompressor()
    return _whole(stream.decompress(data, most), stream.eof, most)


def _unxz(data: bytes, most: int) -> bytes:
    stream = lzma.LZMADecompressor(memlimit=2**28)
    return _whole(stream.decompress(data, most), stream.eof, most)


def _unzstd(data: bytes, most: int) -> bytes:
    import pyarrow as pa

    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        return bytes(stream.read(most))


def _unsnappy(data: bytes, most: int) -> bytes:
    """The block, then the big-endian CRC of what it holds; its size stands at its beginning."""
    import pyarrow as pa

    size = 0
    for number, byte in enumerate(data[:5]):
        size |= (byte & 127) << (7 * number)
        if byte < 128:
            break
    if size >= most:
        return bytes(most)
    unpacked = pa.decompress(data[:-4], size, codec="snappy", asbytes=True)
    if zlib.crc32(unpacked) != int.from_bytes(data[-4:], "big"):
        raise ValueError("its check sum is wrong")
    return bytes(unpacked)


def _unlz4(data: bytes, most: int) -> bytes:
    """The size, then the block."""
    import pyarrow as pa

    size = int.from_bytes(data[:4], "little")
    if size >= most:
        return bytes(most)
    return bytes(pa.decompress(data[4:], size, codec="lz4_raw", asbytes=True))


_CODECS: dict[str, Callable[[bytes, int], bytes]] = {
    "null": lambda data, most: data,
    "deflate": _inflate,
    "bzip2": _bunzip,
    "snappy": _unsnappy,
    "zstandard": _unzstd,
    "xz": _unxz,
    "lz4": _unlz4,
}


def _whole(data: bytes, ended: bool, most: int) -> bytes:
    if not ended and len(data) < most:
        raise ValueError("its data ends too early")
    return data


def records(data: bytes, count: int, schema: Any) -> Iterator[Any]:
    """The records of a block.

    Args:
        data: unpacked.
        count: how many they are.
        schema: that `check_schema` has let pass.
    """
    from fastavro import schemaless_reader

    stream = io.BytesIO(data)
    for _ in range(count):
        yield schemaless_reader(stream, schema, None)


def check_schema(schema: Any) -> Any:
    """A schema whose records cannot be more than their bytes, parsed.

    Raises:
        DataError: it allows records without bytes, lists of them, or types within themselves.
    """
    from fastavro import parse_schema

    parsed = parse_schema(schema)
    if not _least_bytes(parsed, {}, []):
        raise DataError("its records hold nothing (a record without fields, null)")
    return parsed


def _least_bytes(schema: Any, known: dict[str, Any], above: list[str]) -> int:
    """The least bytes that a value of a type takes.

    Args:
        schema: the type.
        known: those that were named so far.
        above: names of the types that this one is part of.
    """
    if isinstance(schema, list):
        return 1 + min(_least_bytes(item, known, above) for item in schema)
    if isinstance(schema, str):
        if schema in above:
            raise DataError(f"its type {schema!r} is a part of itself, which is not read")
        return _least_bytes(known[schema], known, above) if schema in known else schema != "null"
    kind = schema["type"]
    if kind in ("record", "error", "fixed", "enum"):
        known[schema["name"]] = schema
        above = [*above, schema["name"]]
    if kind in ("record", "error"):
        return sum(_least_bytes(field["type"], known, above) for field in schema["fields"])
    if kind == "fixed":
        return int(schema["size"])
    if kind == "array" and not _least_bytes(schema["items"], known, above):
        raise DataError("it has lists of elements without any bytes (null, empty records)")
    if kind == "map":
        _least_bytes(schema["values"], known, above)
    if kind in ("array", "map", "enum"):
        return 1
    return _least_bytes(kind, known, above)
