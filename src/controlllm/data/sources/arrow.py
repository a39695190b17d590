"""Arrow files, in both forms (IPC file and stream).

```
on this machine, not compressed    chunk = one row     mapped into memory, nothing is copied
otherwise                          chunk = the file    read in order, message by message
```
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.arrowmessages import MAGIC, CheckedStream, packed_buffers
from controlllm.data.sources.arrowrows import batch_rows
from controlllm.data.sources.chunks import Chunks, Located, RowChunks, chained, locate
from controlllm.data.sources.files import SourceFile, identify, reading
from controlllm.data.sources.limits import most_unpacked
from controlllm.data.sources.registry import READERS, FileChunks, register_chunks

__all__ = ["MappedChunks", "arrow_chunks", "read_arrow"]


@register_chunks("arrow", ".arrow", ".feather", ".ipc")
def arrow_chunks(files: Sequence[SourceFile], source: SourceConfig) -> Chunks:
    """Chunks of Arrow files: cut as finely as the files allow.

    Raises:
        DataError: a file is no Arrow file.
    """
    kinds = [_kind(file) for file in files]
    if all(kind is MappedChunks for kind in kinds):
        return MappedChunks(files, source)
    return chained([kind([file], source) for kind, file in zip(kinds, files, strict=True)])


def _kind(file: SourceFile) -> Callable[[Sequence[SourceFile], SourceConfig], Chunks]:
    if file.size == 0:
        raise DataError(f"{file} is empty.")
    return MappedChunks if file.is_local and not file.packed and _is_plain(file) else FileChunks


def _is_plain(file: SourceFile) -> bool:
    """Whether no buffer of a local file is compressed: then batches are views of it, not copies."""
    import pyarrow as pa

    with reading(file.address):
        messages = pa.ipc.MessageReader.open_stream(_mapped(file.path)[0])
        return not any(map(packed_buffers, messages))


def _mapped(path: str) -> tuple[Any, bool]:
    """A file in memory, at its first message, and whether it is of the file form."""
    import pyarrow as pa

    mapped = pa.memory_map(path)
    is_file = mapped.read(len(MAGIC)) == MAGIC
    mapped.seek(len(MAGIC) * is_file)
    return mapped, is_file


def _batches(path: str) -> list[Any]:
    """The record batches of a file that hold rows, mapped."""
    import pyarrow as pa

    mapped, is_file = _mapped(path)
    batches: Any = pa.ipc.open_stream(mapped) if not is_file else ()
    if is_file:
        opened = pa.ipc.open_file(mapped)
        batches = map(opened.get_batch, range(opened.num_record_batches))
    return [batch for batch in batches if batch.num_rows]


class MappedChunks(RowChunks):
    """The rows of local Arrow files, mapped into memory: each is a chunk, as quick as any other."""

    def __init__(self, files: Sequence[SourceFile], source: SourceConfig) -> None:
        self.files, self.source = list(files), source
        self._opened: list[tuple[Any, str, int]] | None = None
        self._ends = list(itertools.accumulate(batch.num_rows for batch, _, _ in self._parts()))
        super().__init__(self._ends[-1] if self._ends else 0, *identify(files, source))
        self.num_bytes = sum(file.size or 0 for file in files)

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps: each process makes its own."""
        return self.__dict__ | {"_opened": None}

    def row(self, number: int) -> Located:
        """One row."""
        part, inside = locate(self._ends, number)
        batch, file, first = self._parts()[part]
        (row,) = batch_rows(batch.slice(inside, 1), self.source.max_row_bytes)
        return f"{file}, row {first + inside}", row

    def rows(self) -> Iterator[Located]:
        """All rows, many at once."""
        for batch, file, first in self._parts():
            for start in range(0, batch.num_rows, 1024):
                rows = batch_rows(batch.slice(start, 1024), self.source.max_row_bytes)
                for number, row in enumerate(rows, start=first + start):
                    yield f"{file}, row {number}", row

    def _parts(self) -> list[tuple[Any, str, int]]:
        """(batch, its file, the number of its first row there) of all batches that hold rows."""
        if self._opened is None:
            self._opened = []
            for file in self.files:
                first = 0
                with reading(file.address):
                    for batch in _batches(file.path):
                        self._opened.append((batch, str(file), first))
                        first += batch.num_rows
        return self._opened


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
