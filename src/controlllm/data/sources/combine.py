"""Blocks made of blocks: several in a row, the first rows only, or held in memory."""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence

from controlllm.data.sources.blocks import Blocks, Located, MemoryBlocks
from controlllm.data.sources.identity import digest
from controlllm.data.sources.weight import weight

__all__ = ["MEMORY_BYTES", "Chained", "FirstBlocks", "RowRange", "first_rows", "take"]

MEMORY_BYTES, MEMORY_ROWS = 16 * 2**20, 2**18
"""The most that rows of one source may weigh (unpacked) to be held in memory, and be in number."""


class Chained(Blocks):
    """The blocks of several sources, one after the other.

    Args:
        parts: at least one.
    """

    def __init__(self, parts: Sequence[Blocks]) -> None:
        self._parts = list(parts)
        self._ends = list(itertools.accumulate(map(len, parts)))
        rows = [part.num_rows for part in parts]
        sizes = [part.num_bytes for part in parts]
        self.num_rows = None if None in rows else sum(count or 0 for count in rows)
        self.num_bytes = None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def fingerprint(self) -> str:
        """Of all parts."""
        return digest([part.fingerprint for part in self._parts])

    @property
    def stamp(self) -> str:
        """Of all parts."""
        return digest([part.stamp for part in self._parts])

    def __len__(self) -> int:
        """Blocks of all parts."""
        return self._ends[-1]

    def read(self, block: int, start: int = 0) -> Iterator[Located]:
        """The rows of a block of its part."""
        part, inner = self._locate(block)
        return part.read(inner, start)

    def rows(self) -> Iterator[Located]:
        """All rows of all parts."""
        return itertools.chain.from_iterable(part.rows() for part in self._parts)

    def count(self, block: int) -> int:
        """Number of rows of a block."""
        part, inner = self._locate(block)
        return part.count(inner)

    def _locate(self, block: int) -> tuple[Blocks, int]:
        self.require(block)
        number = bisect.bisect_right(self._ends, block)
        return self._parts[number], block - (self._ends[number - 1] if number else 0)


class RowRange(Blocks):
    """Some of the rows of blocks that are single rows.

    Args:
        blocks: `by_row`.
        wanted: which rows, in order.
    """

    def __init__(self, blocks: Blocks, wanted: range) -> None:
        self._blocks = blocks
        self._wanted = wanted
        self.num_rows = len(wanted)

    @property
    def fingerprint(self) -> str:
        """Of the blocks and the choice."""
        return f"{self._blocks.fingerprint}[{self._wanted.start}:{self._wanted.stop}]"

    @property
    def stamp(self) -> str:
        """Of the blocks."""
        return self._blocks.stamp

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._wanted)

    def read(self, block: int, start: int = 0) -> Iterator[Located]:
        """One row."""
        self.require(block)
        return self._blocks.read(self._wanted[block], start)

    def rows(self) -> Iterator[Located]:
        """All wanted rows."""
        if self._wanted.start == 0:
            return itertools.islice(self._blocks.rows(), len(self))
        return super().rows()


class FirstBlocks(Blocks):
    """The first rows of blocks that hold more.

    Args:
        blocks: what is shortened.
        kept: how many blocks are left.
        in_last: rows that are left of the last of them.
        num_rows: rows in all, where that is known.
    """

    def __init__(self, blocks: Blocks, kept: int, in_last: int, num_rows: int | None) -> None:
        self._blocks = blocks
        self._kept = kept
        self._in_last = in_last
        self.num_rows = num_rows
        if blocks.num_bytes is not None:
            self.num_bytes = blocks.num_bytes * kept // len(blocks)

    @property
    def fingerprint(self) -> str:
        """Of the blocks and the number of rows."""
        return f"{self._blocks.fingerprint}[:{self._kept}:{self._in_last}]"

    @property
    def stamp(self) -> str:
        """Of the blocks."""
        return self._blocks.stamp

    def __len__(self) -> int:
        """Number of blocks that are left."""
        return self._kept

    def read(self, block: int, start: int = 0) -> Iterator[Located]:
        """The rows of a block; of the last one only the first."""
        self.require(block)
        rows = self._blocks.read(block, start)
        if block == self._kept - 1:
            return itertools.islice(rows, max(0, self._in_last - start))
        return rows

    def count(self, block: int) -> int:
        """Number of rows of a block."""
        if block == self._kept - 1:
            return sum(1 for _ in self.read(block))
        return self._blocks.count(block)


def first_rows(blocks: Blocks, most: int | None) -> Blocks:
    """The first `most` rows of `blocks`, without reading what lies behind them.

    Few rows are held in memory, so that a large source starts at once. For many, the last block
    that is needed is found by counting, which Parquet and Arrow know and JSON lines cost a pass
    over those lines without parsing them.
    """
    if most is None or (blocks.num_rows is not None and blocks.num_rows <= most):
        return blocks
    if blocks.by_row:
        return RowRange(blocks, range(most))
    rows = take(itertools.islice(blocks.rows(), most), MEMORY_BYTES)
    if rows is not None:
        return MemoryBlocks(rows, f"{blocks.fingerprint}[:{most}]", blocks.stamp)
    left = most
    for block in range(len(blocks) - 1):
        count = blocks.count(block)
        if count >= left:
            return FirstBlocks(blocks, block + 1, left, most)
        left -= count
    return FirstBlocks(blocks, len(blocks), left, None)


def take(rows: Iterable[Located], most_bytes: int) -> list[Located] | None:
    """All rows in a list; None where they weigh more than `most_bytes`, or are too many."""
    kept = []
    for located in rows:
        kept.append(located)
        most_bytes -= weight(located[1])
        if most_bytes < 0 or len(kept) > MEMORY_ROWS:
            return None
    return kept
