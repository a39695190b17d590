"""Avro container files, cut at the sync markers between their blocks of records."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from controlllm.common.errors import DataError
from controlllm.data.sources.chunks import Located
from controlllm.data.sources.limits import check_unpacked, most_unpacked, read_signed, read_unsigned
from controlllm.data.sources.lines import bounded
from controlllm.data.sources.ranges import Range, RangeChunks
from controlllm.data.sources.registry import register_chunks

__all__ = ["AvroChunks", "check_schema", "unpack"]


def unpack(codec: str, data: bytes, most: int) -> bytes:
    """The bytes of a block; one more than `most` where there are more than that.

    Raises:
        ValueError: the codec is not known, or the data is broken.
    """
    if codec not in _CODECS:
        raise ValueError(f"the codec {codec!r} is not known; known: {', '.join(_CODECS)}")
    return _CODECS[codec](data, most + 1)


def _stream(make: Callable[[], Any]) -> Callable[[bytes, int], bytes]:
    """A codec by a decompressor of Python's, which stops at `most` bytes."""

    def unpacked(data: bytes, most: int) -> bytes:
        stream = make()
        found: bytes = stream.decompress(data, most)
        if not stream.eof and len(found) < most:
            raise ValueError("its data ends too early")
        return found

    return unpacked


def _unzstd(data: bytes, most: int) -> bytes:
    import pyarrow as pa

    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        return bytes(stream.read(most))


def _unsnappy(data: bytes, most: int) -> bytes:
    """The block, then the big-endian CRC of what it holds; its size stands at its beginning."""
    import pyarrow as pa

    if (size := read_unsigned(io.BytesIO(data))) >= most:
        return bytes(most)
    unpacked = pa.decompress(data[:-4], size, codec="snappy", asbytes=True)
    if zlib.crc32(unpacked) != int.from_bytes(data[-4:], "big"):
        raise ValueError("its check sum is wrong")
    return bytes(unpacked)


def _unlz4(data: bytes, most: int) -> bytes:
    """The size, then the block."""
    import pyarrow as pa

    if (size := int.from_bytes(data[:4], "little")) >= most:
        return bytes(most)
    return bytes(pa.decompress(data[4:], size, codec="lz4_raw", asbytes=True))


_CODECS: dict[str, Callable[[bytes, int], bytes]] = {
    "null": lambda data, most: data,
    "deflate": _stream(lambda: zlib.decompressobj(-15)),
    "bzip2": _stream(bz2.BZ2Decompressor),
    "snappy": _unsnappy,
    "zstandard": _unzstd,
    "xz": _stream(lambda: lzma.LZMADecompressor(memlimit=2**28)),
    "lz4": _unlz4,
}


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
    """The least bytes that a value of a type takes."""
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


_MARKER_BYTES = 16
_MOST_BYTES = 2**30
_SCAN_BYTES = 2**16


@register_chunks("avro", ".avro")
class AvroChunks(RangeChunks):
    """Avro files (any codec of the format), cut at the first block of each range."""

    def read_range(self, part: Range, skip: int) -> Iterator[Located]:
        """The records of the blocks that begin in `part`; skipped blocks are not decoded."""
        limit = self.source.max_row_bytes
        for position, count, stored, codec, schema in self._blocks(part):
            if skip >= count:
                skip -= count
                continue
            place = f"{part.file}, block at byte {position}"
            with _told(part, position):
                data = unpack(codec, stored, most_unpacked(len(stored), self.source))
            check_unpacked(place, len(data), len(stored), self.source)
            for number, row in enumerate(_records(part, position, data, count, schema)):
                if number < skip:
                    continue
                if not isinstance(row, dict):
                    row = DataError(f"a row must be a record; this is a {type(row).__name__}")
                yield f"{place}, record {number}", bounded(row, len(data), limit)
            skip = 0

    def count_range(self, part: Range) -> int:
        """How many records the blocks hold, as their heads say."""
        return sum(count for _, count, *_ in self._blocks(part))

    def _blocks(self, part: Range) -> Iterator[tuple[int, int, bytes, str, Any]]:
        """(position, records, stored bytes, codec, schema) of the blocks that begin in `part`."""
        try:
            from fastavro import block_reader
        except ImportError:
            text = f"{part.file} needs the package `fastavro`: pip install fastavro"
            raise DataError(text) from None
        most = _MOST_BYTES
        if part.file.packed:  # What was packed twice must not grow without end either.
            most = most_unpacked(part.file.size or 0, self.source)
        with part.file.open(part.bytes(_SCAN_BYTES)) as file:
            spliced = _Spliced(file, most)
            with _told(part, 0):
                reader = block_reader(cast(IO[bytes], spliced))
                codec, schema = str(reader.codec), check_schema(reader.writer_schema)
            if part.start and not spliced.jump(part):
                return
            while not part.ends_before(position := spliced.position):
                with _told(part, position):
                    block = spliced.block()
                if block is None:
                    return
                yield position, *block, codec, schema


def _records(part: Range, position: int, data: bytes, count: int, schema: Any) -> Iterator[Any]:
    from fastavro import schemaless_reader

    stream = io.BytesIO(data)
    with _told(part, position):
        for _ in range(count):
            yield schemaless_reader(stream, schema, None)


@contextmanager
def _told(part: Range, position: int) -> Iterator[None]:
    """Whatever the decoder stumbles over, with file and position."""
    try:
        yield
    except OSError:  # The disk's and the network's errors are told elsewhere.
        raise
    except DataError as error:
        raise DataError(f"{part.file}: {error}.") from None
    except Exception as error:
        text = str(error) or type(error).__name__
        raise DataError(
            f"{part.file}: broken Avro (block at byte {position}: {text}); is it complete?"
        ) from error


class _Spliced:
    """A file as `fastavro` reads it: the head, then blocks from where `jump` found one."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file, self._most = file, most
        self.position, self._last = 0, b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._most:
            raise ValueError(f"it says that it has {size:,} bytes")
        data = self._file.read(size)
        self.position += len(data)
        if len(data) == _MARKER_BYTES:
            self._last = data  # The head, and each block, ends with the marker.
        return data

    def block(self) -> tuple[int, bytes] | None:
        """(records, stored bytes) of the block that comes next; None at the end."""
        marker, start = self._last, self.position
        try:
            count, size = read_signed(self), read_signed(self)
        except IndexError:
            if self.position == start:
                return None
            raise ValueError("the file ends within it") from None
        data = self.read(size)
        if len(data) < size or self.read(_MARKER_BYTES) != marker or count < 0:
            raise ValueError("no marker at its end")
        self._last = marker
        return count, data

    def jump(self, part: Range) -> bool:
        """Go on at the first block that begins in `part`; whether there is one."""
        marker = self._last
        start = max(part.start, self.position) - _MARKER_BYTES
        self._file.seek(start)
        window = b""
        while piece := self._file.read(_SCAN_BYTES):
            window = window[-_MARKER_BYTES + 1 :] + piece
            start += len(piece)
            if (found := window.find(marker)) >= 0:
                self.position = start - len(window) + found + _MARKER_BYTES
                self._file.seek(self.position)
                return True
            if part.ends_before(start):
                return False
        return False
