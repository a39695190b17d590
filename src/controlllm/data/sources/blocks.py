"""A source as numbered blocks of rows: what shuffling, sharding and resuming need of any source.

```
random access (memory, Arrow)         block = one row      any order costs the same
files that can be cut (JSON lines)    block = byte range   read in order, opened anywhere
                      (Parquet)       block = row group
files that cannot (.gz, CSV)          block = file         read in order
a Hub data set that is streamed       block = shard        read in order
```
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from controlllm.common.errors import DataError

__all__ = ["Blocks", "Located", "MemoryBlocks", "RowBlocks"]

Located: TypeAlias = tuple[Any, Any]
"""(place, row): `str(place)` is for messages. A row that cannot be read is given as the `DataError`
that says why, so that reading can go on behind it."""


class Blocks(ABC):
    """Rows in numbered blocks. Nothing is read before it is asked for.

    Instances are pickled into worker processes: open files only inside `read`.
    """

    num_rows: int | None = None
    """Rows of the source, where that is known without reading it."""

    num_bytes: int | None = None
    """Bytes as stored, where that is known without reading it."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Of the content: changes when the rows, their order or the cuts between blocks may have.

        It does not depend on where the source lies, so a run may go on with a copy.
        """

    @property
    def stamp(self) -> str:
        """Changes when the source was touched (times, ETags, revision): for keys of caches only."""
        return ""

    @property
    def by_row(self) -> bool:
        """Whether each block is exactly one row, so that any order of rows is as quick."""
        return len(self) == self.num_rows

    @abstractmethod
    def __len__(self) -> int:
        """Number of blocks."""

    @abstractmethod
    def read(self, block: int, start: int = 0) -> Iterator[Located]:
        """The rows of a block in order, from row `start` of the block on.

        Args:
            block: 0 <= block < len.
            start: rows to leave out; they are not parsed where that can be avoided.

        Raises:
            DataError: the block cannot be read as a whole; says which file and why.
        """

    def rows(self) -> Iterator[Located]:
        """All rows, block after block; quicker than reading each block where that is possible."""
        for block in range(len(self)):
            yield from self.read(block)

    def count(self, block: int) -> int:
        """Number of rows of a block, bad ones too; read as cheaply as possible."""
        return 1 if self.by_row else sum(1 for _ in self.read(block))

    def require(self, block: int) -> None:
        """Check a block's number.

        Raises:
            DataError: there is no such block.
        """
        if not 0 <= block < len(self):
            raise DataError(f"there is no block {block}; the source has {len(self)}.")


class RowBlocks(Blocks):
    """Blocks that are single rows, any of which is as quick to read; a base to build upon.

    Args:
        num_rows: how many there are.
        fingerprint: see `Blocks.fingerprint`.
        stamp: see `Blocks.stamp`.
    """

    def __init__(self, num_rows: int, fingerprint: str, stamp: str = "") -> None:
        self.num_rows: int = num_rows
        self._fingerprint = fingerprint
        self._stamp = stamp

    @property
    def fingerprint(self) -> str:
        """As it was given."""
        return self._fingerprint

    @property
    def stamp(self) -> str:
        """As it was given."""
        return self._stamp

    def __len__(self) -> int:
        """Number of rows."""
        return self.num_rows

    @abstractmethod
    def row(self, number: int) -> Located:
        """One row with its place."""

    def read(self, block: int, start: int = 0) -> Iterator[Located]:
        """The one row of a block."""
        self.require(block)
        if start == 0:
            yield self.row(block)


class MemoryBlocks(RowBlocks):
    """Rows that are held in memory.

    Args:
        rows: (place, row) pairs.
        fingerprint: of where they came from.
        stamp: when that was touched.
    """

    def __init__(self, rows: Sequence[Located], fingerprint: str, stamp: str = "") -> None:
        super().__init__(len(rows), fingerprint, stamp)
        self._rows = rows

    def row(self, number: int) -> Located:
        """One of them."""
        return self._rows[number]
