"""Arrow files, in both forms (IPC file and stream).

```
on this machine, not compressed    block = one row        mapped into memory, nothing is copied
IPC file otherwise                 block = record batch   known from its footer
IPC stream otherwise               block = the file       read in order
```
"""

import bisect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.arrowmessages import (
    MAGIC,
    CheckedStream,
    Message,
    messages_of_file,
    messages_of_stream,
)
from controlllm.data.sources.arrowrows import batch_rows
from controlllm.data.sources.blocks import Blocks, Located
from controlllm.data.sources.combine import Chained
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.filewise import FileBlocks, FilesBlocks
from controlllm.data.sources.registry import READERS, register_blocks
from controlllm.data.sources.trouble import reading
from controlllm.data.sources.unpacking import most_unpacked

__all__ = ["BatchBlocks", "MappedBlocks", "arrow_blocks", "read_arrow"]


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
    is_file = _is_ipc_file(file)
    if file.is_local and _is_mappable(file, is_file):
        return MappedBlocks
    if not is_file:
        return FileBlocks
    file.require_ranged()
    return BatchBlocks


def _is_ipc_file(file: SourceFile) -> bool:
    with reading(file.address), file.open_raw(2**12) as opened:
        return opened.read(len(MAGIC)) == MAGIC


def _open(source: Any) -> Any:
    """The reader of an Arrow file that is mapped, or can be sought in."""
    import pyarrow as pa

    is_file = source.read(len(MAGIC)) == MAGIC
    source.seek(0)
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def _batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _is_mappable(file: SourceFile, is_file: bool) -> bool:
    """Whether no buffer of a local file is compressed: then batches are views of it, not copies."""
    with _told(file), file.open_raw(2**12) as opened:
        if is_file:
            dictionaries, batches = messages_of_file(opened, file.size or 0)
            return not any(message.buffers for message in (*dictionaries, *batches))
        return not any(message.buffers for message in messages_of_stream(opened))


@contextmanager
def _told(file: SourceFile) -> Iterator[None]:
    """What is wrong with a file as a whole, with its name."""
    with reading(file.address):
        try:
            yield
        except DataError as error:
            raise DataError(f"{file} cannot be read: {error}.") from None


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
        file = files[0]
        with _told(file), file.open_raw() as opened:
            dictionaries, self._messages = messages_of_file(opened, file.size or 0)
        # All dictionaries are unpacked with the first batch.
        with reading(file.address), file.open_raw() as opened:
            for message in dictionaries:
                self._check(opened, message)

    def _check(self, opened: IO[bytes], message: Message) -> bytes:
        """The bytes of a message, once they are known to become no more than they may."""
        opened.seek(message.start)
        data = opened.read(message.head + message.body)
        what = f"{self.files[0]}, message at byte {message.start}"
        message.check(what, data[message.head :], self.source)
        return data

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._messages)

    def read(self, block: int, start: int = 0) -> Iterator[Located]:
        """The rows of a batch."""
        self.require(block)
        file, message = self.files[0], self._messages[block]
        with reading(file.address), file.open_raw() as opened:
            data = self._check(opened, message)
            batch = _open(_Kept(opened, message.start, data)).get_batch(block).slice(start)
            for row, item in enumerate(batch_rows(batch, self.source.max_row_bytes), start=start):
                yield f"{file}, batch {block}, row {row}", item


class _Kept:
    """A file of which one part was read already."""

    closed = False

    def __init__(self, file: IO[bytes], start: int, data: bytes) -> None:
        self._file, self._start, self._data = file, start, data
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            self._at = self._file.seek(offset, whence)
        else:
            self._at = offset + (self._at if whence == os.SEEK_CUR else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        begin = self._at - self._start
        if begin >= 0 and begin + size <= len(self._data):
            data = self._data[begin : begin + size]
        else:
            self._file.seek(self._at)
            data = self._file.read(size)
        self._at += len(data)
        return data


@READERS.register("arrow")
def read_arrow(file: SourceFile, source: SourceConfig) -> Iterator[Located]:
    """The rows of an Arrow file, in order."""
    import pyarrow as pa

    size = file.size or 0
    most = most_unpacked(size, source) if file.packed or file.size is None else size
    with file.open() as opened:
        stream = pa.ipc.open_stream(CheckedStream(opened, str(file), most, source))
        number = 0
        for batch in stream:
            for row in batch_rows(batch, source.max_row_bytes):
                yield f"{file}, row {number}", row
                number += 1
