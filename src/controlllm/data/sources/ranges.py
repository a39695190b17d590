"""Files cut into byte ranges. A row belongs to the range in which its first byte lies."""

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.chunks import Located, locate
from controlllm.data.sources.files import SourceFile, reading
from controlllm.data.sources.registry import FilesChunks

__all__ = ["RANGE_BYTES", "Range", "RangeChunks"]

RANGE_BYTES, LEAST_BYTES = 2**20, 2**13
"""Largest and least size of a chunk: elsewhere each is one request, here a seek costs little."""

MANY = 8192
"""Chunks that files of this machine are cut into, if they are large enough: a shuffled order of so
many mixes well."""


@dataclass(frozen=True)
class Range:
    """Bytes start <= position < end of a file; without an end, all of it."""

    file: SourceFile
    start: int = 0
    end: int | None = None

    def bytes(self, more: int) -> int | None:
        """How much to fetch of it at once: its bytes and some for the last row; None if all."""
        return None if self.end is None else self.end - self.start + more

    def ends_before(self, position: int) -> bool:
        """Whether a row that begins at `position` belongs to another range."""
        return self.end is not None and position >= self.end


class RangeChunks(FilesChunks):
    """A byte range of a file is a chunk; files that cannot be cut are one chunk each.

    Nothing but the files' sizes is needed to know all chunks.
    """

    def __init__(
        self, files: Sequence[SourceFile], source: SourceConfig, range_bytes: int | None = None
    ) -> None:
        range_bytes = range_bytes or _range_bytes(files)
        super().__init__(files, source, range_bytes)
        self._range_bytes = range_bytes
        cuts = [
            -(-(file.size or 1) // range_bytes) if file.can_be_cut else 1 for file in self.files
        ]
        self._ends = list(itertools.accumulate(cuts))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
        """The rows that begin in a range."""
        part = self.range(chunk)
        with reading(part.file.address):
            yield from self.read_range(part, start)

    def rows(self) -> Iterator[Located]:
        """All rows; each file is opened once, so lines can be numbered."""
        for file in self.files:
            with reading(file.address):
                yield from self.read_range(Range(file), 0)

    def count(self, chunk: int) -> int:
        """Number of rows, without parsing them."""
        part = self.range(chunk)
        with reading(part.file.address):
            return self.count_range(part)

    def range(self, chunk: int) -> Range:
        """Which bytes a chunk is."""
        self.require(chunk)
        number, cut = locate(self._ends, chunk)
        file = self.files[number]
        if not file.can_be_cut:
            return Range(file)
        return Range(file, cut * self._range_bytes, (cut + 1) * self._range_bytes)

    @abstractmethod
    def read_range(self, part: Range, skip: int) -> Iterator[Located]:
        """The rows that begin in `part`, but for the first `skip`."""

    @abstractmethod
    def count_range(self, part: Range) -> int:
        """How many rows begin in `part`."""


def _range_bytes(files: Sequence[SourceFile]) -> int:
    if not all(file.is_local for file in files):
        return RANGE_BYTES
    wanted = sum(file.size or 0 for file in files) // MANY
    return min(max(wanted, LEAST_BYTES), RANGE_BYTES)
