"""Avro: container files cut at the sync markers that stand between their blocks of records."""

from collections.abc import Iterator
from typing import IO, Any

from controlllm.common.errors import DataError
from controlllm.data.sources.blocks import Located
from controlllm.data.sources.lines import too_long
from controlllm.data.sources.ranges import Range, RangeBlocks
from controlllm.data.sources.registry import register_blocks
from controlllm.data.sources.weight import weight

__all__ = ["AvroBlocks"]

_MARKER_BYTES = 16
_MOST_BYTES = 2**30
_SCAN_BYTES = 2**16


@register_blocks("avro", ".avro")
class AvroBlocks(RangeBlocks):
    """Avro files (any codec that `fastavro` knows), cut at the first block of each range."""

    def read_range(self, part: Range, skip: int) -> Iterator[Located]:
        """The records of the blocks that begin in `part`; skipped blocks are not decoded."""
        limit = self.source.max_row_bytes
        for position, block in _blocks(part):
            if skip >= block.num_records:
                skip -= block.num_records
                continue
            large = block.bytes_.getbuffer().nbytes > limit
            for number, row in enumerate(_records(part, position, block)):
                if number < skip:
                    continue
                if large and (length := weight(row)) > limit:
                    row = too_long(length, limit)
                elif not isinstance(row, dict):
                    row = DataError(f"a row must be a record; this is a {type(row).__name__}")
                yield f"{part.file}, block at byte {position}, record {number}", row
            skip = 0

    def count_range(self, part: Range) -> int:
        """How many records the blocks hold, as their heads say."""
        return sum(block.num_records for _, block in _blocks(part))


def _blocks(part: Range) -> Iterator[tuple[int, Any]]:
    """(position, block) of the Avro blocks that begin in `part`."""
    fastavro = _fastavro(part)
    with part.file.open(part.bytes(_SCAN_BYTES)) as file:
        spliced = _Spliced(file)
        with _told(part, 0):
            blocks = fastavro.block_reader(spliced)
        if part.start and not spliced.jump(part):
            return
        while not part.ends_before(position := spliced.position):
            with _told(part, position):
                block = next(blocks, None)
            if block is None:
                return
            yield position, block


def _records(part: Range, position: int, block: Any) -> Iterator[Any]:
    records = iter(block)
    while True:
        with _told(part, position):
            try:
                row = next(records)
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
        if isinstance(error, Exception) and not isinstance(error, OSError | DataError):
            text = str(error) or type(error).__name__
            raise DataError(
                f"{self._part.file}: broken Avro (block at byte {self._position}: {text}); is it "
                "complete?"
            ) from error


class _Spliced:
    """A file as `fastavro` reads it: the head, then blocks from where `jump` found one."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.position = 0
        self._last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_BYTES:
            raise ValueError(f"a block of {size:,} bytes")
        data = self._file.read(size)
        self.position += len(data)
        if len(data) == _MARKER_BYTES:
            self._last = data  # The head, and each block, ends with the marker.
        return data

    def tell(self) -> int:
        return self.position

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
