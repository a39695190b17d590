"""Arrow files, in both forms (IPC file and stream).

```
on this machine, not compressed    block = one row        mapped into memory, nothing is copied
IPC file otherwise                 block = record batch   known from its footer
IPC stream otherwise               block = the file       read in order
```
"""

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from controlllm.common.errors import DataError
from controlllm.data.config import SourceConfig
from controlllm.data.sources.arrowrows import batch_rows
from controlllm.data.sources.blocks import Blocks, Located
from controlllm.data.sources.combine import Chained
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.filewise import FileBlocks, FilesBlocks
from controlllm.data.sources.registry import READERS, register_blocks
from controlllm.data.sources.trouble import reading

__all__ = ["BatchBlocks", "MappedBlocks", "arrow_blocks", "read_arrow"]

_MAGIC = b"ARROW1"


@register_blocks("arrow", ".arrow", ".feather", ".ipc")
def arrow_blocks(files: Sequence[SourceFile], source: SourceConfig) -> Blocks:
    """Blocks of Arrow files: cut as finely as the files allow.

    Raises:
        DataError: a file is no Arrow file.
    """
    kinds = [_kind(file) for file in files]
    if all(kind is MappedBlocks for kind in kinds):
        return MappedBlocks(files, source)
    parts = [kind([file], source) for kind, file in zip(kinds, files, strict=True)]
    return Chained(parts) if len(parts) > 1 else parts[0]


def _kind(file: SourceFile) -> Callable[[Sequence[SourceFile], SourceConfig], Blocks]:
    if file.size == 0:
        raise DataError(f"{file} is empty.")
    if file.packed:
        return FileBlocks
    if file.is_local and _is_mappable(file):
        return MappedBlocks
    if not _is_ipc_file(file):
        return FileBlocks
    file.require_ranged()
    return BatchBlocks


def _is_ipc_file(file: SourceFile) -> bool:
    with reading(file.address), file.open_raw(2**12) as opened:
        return opened.read(len(_MAGIC)) == _MAGIC


def _open(source: Any) -> Any:
    """The reader of an Arrow file that is mapped, or can be sought in."""
    import pyarrow as pa

    is_file = source.read(len(_MAGIC)) == _MAGIC
    source.seek(0)
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def _batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _is_mappable(file: SourceFile) -> bool:
    """Whether batches of a local file are views of it, not unpacked copies."""
    import pyarrow as pa

    with reading(file.address), pa.memory_map(file.path) as mapped:
        whole = mapped.read_buffer()
        mapped.seek(0)
        batch = next(_batches(_open(mapped)), None)
        columns = batch.columns if batch is not None else []
        buffers = [buffer for column in columns for buffer in column.buffers() if buffer]
        end = whole.address + whole.size
        return all(whole.address <= b.address < end for b in buffers if b.size)


class MappedBlocks(FilesBlocks):
    """The rows of local Arrow files, mapped into memory: each is a block, as quick as any other.

    Args:
        files: in order, on this machine, not compressed.
        source: the options they are read with.
    """

    def __init__(self, files: Sequence[SourceFile], source: SourceConfig) -> None:
        super().__init__(files, source)
        self._mapped: tuple[list[Any], list[int], list[int]] | None = None
        self.num_rows = self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps: each process makes its own."""
        return self.__dict__ | {"_mapped": None}

    def __len__(self) -> int:
        """Number of rows."""
        return self.num_rows or 0

    def read(self, block: int, start: int = 0) -> Iterator[Located]:
        """One row."""
        self.require(block)
        if start:
            return
        number = bisect.bisect_right(self._ends, block)
        batch, first = self._batches[number], self._ends[number - 1] if number else 0
        part = batch.slice(block - first, 1)
        yield (self._place(number, block - first), *batch_rows(part, self.source.max_row_bytes))

    def rows(self) -> Iterator[Located]:
        """All rows, many at once."""
        for number, batch in enumerate(self._batches):
            for first in range(0, batch.num_rows, 1024):
                part = batch.slice(first, 1024)
                rows = batch_rows(part, self.source.max_row_bytes)
                for row, item in enumerate(rows, start=first):
                    yield self._place(number, row), item

    def _place(self, number: int, row: int) -> str:
        """Where a row of a batch is: its number in its file."""
        file = self._maps[1][number]
        first = bisect.bisect_left(self._maps[1], file)
        before = self._ends[number - 1] if number else 0
        begin = self._ends[first - 1] if first else 0
        return f"{self.files[file]}, row {before - begin + row}"

    @property
    def _batches(self) -> list[Any]:
        return self._maps[0]

    @property
    def _ends(self) -> list[int]:
        return self._maps[2]

    @property
    def _maps(self) -> tuple[list[Any], list[int], list[int]]:
        """(batches that hold rows, the file of each, the number of rows up to its end)."""
        if self._mapped is None:
            import pyarrow as pa

            batches: list[Any] = []
            file_of: list[int] = []
            for number, file in enumerate(self.files):
                with reading(file.address):
                    found = [b for b in _batches(_open(pa.memory_map(file.path))) if b.num_rows]
                batches += found
                file_of += [number] * len(found)
            ends = list(itertools.accumulate(batch.num_rows for batch in batches))
            self._mapped = batches, file_of, ends
        return self._mapped


class BatchBlocks(FilesBlocks):
    """The record batches of one Arrow IPC file that is compressed or lies elsewhere.

    Args:
        files: exactly one, that can be read from anywhere.
        source: the options it is read with.
    """

    def __init__(self, files: Sequence[SourceFile], source: SourceConfig) -> None:
        super().__init__(files, source)
        with reading(files[0].address), files[0].open_raw() as opened:
            self._size = _open(opened).num_record_batches

    def __len__(self) -> int:
        """Number of batches."""
        return self._size

    def read(self, block: int, start: int = 0) -> Iterator[Located]:
        """The rows of a batch."""
        self.require(block)
        file = self.files[0]
        with reading(file.address), file.open_raw() as opened:
            batch = _open(opened).get_batch(block).slice(start)
            for row, item in enumerate(batch_rows(batch, self.source.max_row_bytes), start=start):
                yield f"{file}, batch {block}, row {row}", item


@READERS.register("arrow")
def read_arrow(file: SourceFile, source: SourceConfig) -> Iterator[Located]:
    """The rows of an Arrow file, in order."""
    import pyarrow as pa

    with file.open() as opened:
        head = opened.read(len(_MAGIC))
        if head == _MAGIC:
            raise DataError(
                f"{file}: an Arrow file of the IPC file form cannot be read from its beginning; "
                "unpack or download it."
            )
        stream = pa.ipc.open_stream(_WithHead(head, opened))
        number = 0
        for batch in stream:
            for row in batch_rows(batch, source.max_row_bytes):
                yield f"{file}, row {number}", row
                number += 1


class _WithHead:
    """A stream of which the first bytes were read already."""

    closed = False

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int = -1) -> bytes:
        if self._head:
            head, self._head = self._head[:size], self._head[size:] if size >= 0 else b""
            return head if len(head) == size else head + self.read(size - len(head))
        data: bytes = self._rest.read(size)
        return data
