"""A source as numbered chunks of rows, which can be shuffled, dealt out and resumed.

```
random access (memory, Arrow)         chunk = one row      any order costs the same
files that can be cut (JSON lines)    chunk = byte range   read in order, opened anywhere
                      (Parquet)       chunk = row group
files that cannot (.gz, CSV)          chunk = file         read in order
a Hub data set that is streamed       chunk = shard        read in order
```
"""

import bisect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from controlllm.common.errors import DataError
from controlllm.data.sources.files import digest
from controlllm.data.sources.limits import weight

__all__ = [
    "MEMORY_BYTES",
    "Chunks",
    "Located",
    "MemoryChunks",
    "Part",
    "RowChunks",
    "chained",
    "first_rows",
    "locate",
    "take",
    "total",
]

Located: TypeAlias = tuple[Any, Any]
"""(place, row): `str(place)` is for messages. A row that cannot be read is given as the `DataError`
that says why, so that reading can go on behind it."""


class Chunks(ABC):
    """Rows in numbered chunks. Nothing is read before it is asked for.

    Instances are pickled into worker processes: open files only inside `read`.
    """

    num_rows: int | None = None
    """Rows of the source, where that is known without reading it."""
    num_bytes: int | None = None
    """Bytes as stored, where that is known without reading it."""
    fingerprint: str
    """Of the content: changes when the rows, their order or the cuts between chunks may have. It
    does not depend on where the source lies, so a run may go on with a copy."""
    stamp: str = ""
    """Changes when the source was touched (times, ETags, revision): for keys of caches only."""

    @property
    def by_row(self) -> bool:
        """Whether each chunk is exactly one row, so that any order of rows is as quick."""
        return len(self) == self.num_rows

    @abstractmethod
    def __len__(self) -> int:
        """Number of chunks."""

    @abstractmethod
    def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
        """The rows of a chunk in order, from row `start` of the chunk on.

        Args:
            chunk: 0 <= chunk < len.
            start: rows to leave out; they are not parsed where that can be avoided.

        Raises:
            DataError: the chunk cannot be read as a whole; says which file and why.
        """

    def rows(self) -> Iterator[Located]:
        """All rows, chunk after chunk; quicker than reading each chunk where that is possible."""
        for chunk in range(len(self)):
            yield from self.read(chunk)

    def count(self, chunk: int) -> int:
        """Number of rows of a chunk, bad ones too; read as cheaply as possible."""
        return 1 if self.by_row else sum(1 for _ in self.read(chunk))

    def require(self, chunk: int) -> None:
        """Check a chunk's number.

        Raises:
            DataError: there is no such chunk.
        """
        if not 0 <= chunk < len(self):
            raise DataError(f"there is no chunk {chunk}; the source has {len(self)}.")


class RowChunks(Chunks):
    """Chunks that are single rows, any of which is as quick to read; a base to build upon."""

    def __init__(self, num_rows: int, fingerprint: str, stamp: str = "") -> None:
        self.num_rows: int = num_rows
        self.fingerprint, self.stamp = fingerprint, stamp

    def __len__(self) -> int:
        return self.num_rows

    @abstractmethod
    def row(self, number: int) -> Located:
        """One row with its place."""

    def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
        """The one row of a chunk."""
        self.require(chunk)
        if start == 0:
            yield self.row(chunk)


class MemoryChunks(RowChunks):
    """Rows that are held in memory."""

    def __init__(self, rows: Sequence[Located], fingerprint: str, stamp: str = "") -> None:
        super().__init__(len(rows), fingerprint, stamp)
        self._rows = rows

    def row(self, number: int) -> Located:
        """One of them."""
        return self._rows[number]


MEMORY_BYTES, MEMORY_ROWS = 16 * 2**20, 2**18
"""The most that rows of one source may weigh (unpacked) to be held in memory, and be in number."""


def locate(ends: Sequence[int], number: int) -> tuple[int, int]:
    """(part, place in it) of a number, where parts lie one after the other and end at `ends`."""
    part = bisect.bisect_right(ends, number)
    return part, number - (ends[part - 1] if part else 0)


def total(sizes: Iterable[int | None]) -> int | None:
    """The sum; None where one is not known."""
    known = list(sizes)
    return None if None in known else sum(size or 0 for size in known)


def chained(parts: Sequence[Chunks]) -> Chunks:
    """The chunks of one or several sources, one after the other."""
    return Chained(parts) if len(parts) > 1 else parts[0]


class Chained(Chunks):
    """The chunks of several sources, one after the other."""

    def __init__(self, parts: Sequence[Chunks]) -> None:
        self._parts, self._ends = list(parts), list(itertools.accumulate(map(len, parts)))
        self.num_rows = total(part.num_rows for part in parts)
        self.num_bytes = total(part.num_bytes for part in parts)
        self.fingerprint = digest([part.fingerprint for part in parts])
        self.stamp = digest([part.stamp for part in parts])

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
        """The rows of a chunk of its part."""
        self.require(chunk)
        part, inner = locate(self._ends, chunk)
        return self._parts[part].read(inner, start)

    def rows(self) -> Iterator[Located]:
        """All rows of all parts."""
        return itertools.chain.from_iterable(part.rows() for part in self._parts)

    def count(self, chunk: int) -> int:
        """Number of rows of a chunk."""
        part, inner = locate(self._ends, chunk)
        return self._parts[part].count(inner)


class Part(Chunks):
    """Some neighbours among the chunks of a source; of the last one perhaps only `in_last` rows."""

    def __init__(
        self, chunks: Chunks, wanted: range, in_last: int | None = None, num_rows: int | None = None
    ) -> None:
        self._chunks, self._wanted, self._in_last = chunks, wanted, in_last
        self._single = chunks.by_row
        self.num_rows, self.stamp = len(wanted) if self._single else num_rows, chunks.stamp
        self.fingerprint = f"{chunks.fingerprint}[{wanted.start}:{wanted.stop}:{in_last}]"
        if chunks.num_bytes is not None:
            self.num_bytes = chunks.num_bytes * len(wanted) // len(chunks)

    def __len__(self) -> int:
        return len(self._wanted)

    def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
        """The rows of a chunk."""
        self.require(chunk)
        rows = self._chunks.read(self._wanted[chunk], start)
        if self._in_last is not None and chunk == len(self) - 1:
            return itertools.islice(rows, max(0, self._in_last - start))
        return rows

    def rows(self) -> Iterator[Located]:
        """All wanted rows."""
        if self._single and self._wanted.start == 0:
            return itertools.islice(self._chunks.rows(), len(self))
        return super().rows()

    def count(self, chunk: int) -> int:
        """Number of rows of a chunk."""
        if self._in_last is not None and chunk == len(self) - 1:
            return sum(1 for _ in self.read(chunk))
        return self._chunks.count(self._wanted[chunk])


def first_rows(chunks: Chunks, most: int | None) -> Chunks:
    """The first `most` rows of `chunks`, without reading what lies behind them.

    Few rows are held in memory, so that a large source starts at once. For many, the last chunk
    that is needed is found by counting, which Parquet and Arrow know and JSON lines cost a pass
    over those lines without parsing them.
    """
    if most is None or (chunks.num_rows is not None and chunks.num_rows <= most):
        return chunks
    if chunks.by_row:
        return Part(chunks, range(most))
    rows = take(itertools.islice(chunks.rows(), most), MEMORY_BYTES)
    if rows is not None:
        return MemoryChunks(rows, f"{chunks.fingerprint}[:{most}]", chunks.stamp)
    left = most
    for chunk in range(len(chunks) - 1):
        count = chunks.count(chunk)
        if count >= left:
            return Part(chunks, range(chunk + 1), left, most)
        left -= count
    return Part(chunks, range(len(chunks)), left)


def take(rows: Iterable[Located], most_bytes: int) -> list[Located] | None:
    """All rows in a list; None where they weigh more than `most_bytes`, or are too many."""
    kept = []
    for located in rows:
        kept.append(located)
        most_bytes -= weight(located[1])
        if most_bytes < 0 or len(kept) > MEMORY_ROWS:
            return None
    return kept
