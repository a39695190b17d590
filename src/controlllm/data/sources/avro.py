"""Avro: container files cut at the sync markers that stand between their blocks of records."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from controlllm.common.errors import DataError
from controlllm.data.sources.avroblocks import check_schema, records, unpack
from controlllm.data.sources.blocks import Located
from controlllm.data.sources.lines import too_long
from controlllm.data.sources.ranges import Range, RangeBlocks
from controlllm.data.sources.registry import register_blocks
from controlllm.data.sources.unpacking import check_unpacked, most_unpacked
from controlllm.data.sources.weight import weight

__all__ = ["AvroBlocks"]

_MARKER_BYTES = 16
_MOST_BYTES = 2**30
_SCAN_BYTES = 2**16


@register_blocks("avro", ".avro")
class AvroBlocks(RangeBlocks):
    """Avro files (any codec of the format), cut at the first block of each range."""

    def read_range(self, part: Range, skip: int) -> Iterator[Located]:
        """The records of the blocks that begin in `part`; skipped blocks are not decoded."""
        limit = self.source.max_row_bytes
        for position, count, stored, head in self._blocks(part):
            if skip >= count:
                skip -= count
                continue
            place = f"{part.file}, block at byte {position}"
            with _told(part, position):
                data = unpack(head.codec, stored, most_unpacked(len(stored), self.source))
            check_unpacked(place, len(data), len(stored), self.source)
            for number, row in enumerate(_records(part, position, data, count, head.schema)):
                if number < skip:
                    continue
                if len(data) > limit and (length := weight(row)) > limit:
                    row = too_long(length, limit)
                elif not isinstance(row, dict):
                    row = DataError(f"a row must be a record; this is a {type(row).__name__}")
                yield f"{place}, record {number}", row
            skip = 0

    def count_range(self, part: Range) -> int:
        """How many records the blocks hold, as their heads say."""
        return sum(count for _, count, _, _ in self._blocks(part))

    def _blocks(self, part: Range) -> Iterator[tuple[int, int, bytes, "_Head"]]:
        """(position, records, stored bytes, the file's head) of blocks that begin in `part`."""
        most = _MOST_BYTES
        if part.file.packed:  # What was packed twice must not grow without end either.
            most = most_unpacked(part.file.size or 0, self.source)
        with part.file.open(part.bytes(_SCAN_BYTES)) as file:
            spliced = _Spliced(file, most)
            with _told(part, 0):
                head = _head(part, spliced)
            if part.start and not spliced.jump(part):
                return
            while not part.ends_before(position := spliced.position):
                with _told(part, position):
                    block = spliced.block()
                if block is None:
                    return
                yield position, *block, head


@dataclass(frozen=True)
class _Head:
    """What stands at the beginning of a file."""

    codec: str
    schema: Any


def _head(part: Range, spliced: "_Spliced") -> _Head:
    reader = _fastavro(part).block_reader(spliced)
    return _Head(reader.codec, check_schema(reader.writer_schema))


def _records(part: Range, position: int, data: bytes, count: int, schema: Any) -> Iterator[Any]:
    rows = records(data, count, schema)
    while True:
        with _told(part, position):
            try:
                row = next(rows)
            except StopIteration:
                return
        yield row


class _told:
    """Whatever the decoder stumbles over, with file and position (quick enough for each row)."""

    def __init__(self, part: Range, position: int) -> None:
        self._part, self._position = part, position

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        # The disk's and the network's errors are told elsewhere.
        if isinstance(error, DataError):
            raise DataError(f"{self._part.file}: {error}.") from None
        if isinstance(error, Exception) and not isinstance(error, OSError):
            text = str(error) or type(error).__name__
            raise DataError(
                f"{self._part.file}: broken Avro (block at byte {self._position}: {text}); is it "
                "complete?"
            ) from error


class _Spliced:
    """A file as `fastavro` reads it: the head, then blocks from where `jump` found one."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self._most = most
        self.position = 0
        self._last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._most:
            raise ValueError(f"a block of {size:,} bytes")
        data = self._file.read(size)
        self.position += len(data)
        if len(data) == _MARKER_BYTES:
            self._last = data  # The head, and each block, ends with the marker.
        return data

    def tell(self) -> int:
        return self.position

    def block(self) -> tuple[int, bytes] | None:
        """(records, stored bytes) of the block that comes next; None at the end."""
        marker = self._last
        first = self.read(1)
        if not first:
            return None
        count, size = self._number(first), self._number(self.read(1))
        data = self.read(size)
        if len(data) < size or self.read(_MARKER_BYTES) != marker or count < 0:
            raise ValueError("no marker at its end")
        self._last = marker
        return count, data

    def _number(self, byte: bytes) -> int:
        """A number as Avro writes it: seven bits in each byte, the sign last."""
        value = shift = 0
        while byte and byte[0] >= 128 and shift < 63:
            value |= (byte[0] & 127) << shift
            shift += 7
            byte = self.read(1)
        if not byte:
            raise ValueError("the file ends there")
        value |= byte[0] << shift
        return (value >> 1) ^ -(value & 1)

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


def _fastavro(part: Range) -> Any:
    try:
        import fastavro
    except ImportError:
        raise DataError(f"{part.file} needs the package `fastavro`: pip install fastavro") from None
    return fastavro
