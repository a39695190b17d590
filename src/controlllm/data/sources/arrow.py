"""Arrow files, in both forms (IPC file and stream).

```
on this machine, not compressed    chunk = one row     mapped into memory, nothing is copied
otherwise                          chunk = the file    read in order, message by message
```
"""

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.arrowmessages import MAGIC, CheckedStream, messages_of
from controlllm.data.sources.arrowrows import batch_rows
from controlllm.data.sources.chunks import Chained, Chunks, Located
from controlllm.data.sources.files import SourceFile, reading
from controlllm.data.sources.limits import most_unpacked
from controlllm.data.sources.registry import READERS, FileChunks, FilesChunks, register_chunks

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
    parts = [kind([file], source) for kind, file in zip(kinds, files, strict=True)]
    return Chained(parts) if len(parts) > 1 else parts[0]


def _kind(file: SourceFile) -> Callable[[Sequence[SourceFile], SourceConfig], Chunks]:
    if file.size == 0:
        raise DataError(f"{file} is empty.")
    return MappedChunks if file.is_local and not file.packed and _is_plain(file) else FileChunks


def _is_plain(file: SourceFile) -> bool:
    """Whether no buffer of a local file is compressed: then batches are views of it, not copies."""
    with reading(file.address), file.open_raw(2**12) as opened:
        try:
            return not any(message.buffers for message in messages_of(opened))
        except DataError as error:
            raise DataError(f"{file} cannot be read: {error}.") from None


def _batches(path: str) -> list[Any]:
    """The record batches of a file that hold rows, mapped."""
    import pyarrow as pa

    mapped = pa.memory_map(path)
    is_file = mapped.read(len(MAGIC)) == MAGIC
    mapped.seek(0)
    if not is_file:
        return [batch for batch in pa.ipc.open_stream(mapped) if batch.num_rows]
    opened = pa.ipc.open_file(mapped)
    batches = map(opened.get_batch, range(opened.num_record_batches))
    return [batch for batch in batches if batch.num_rows]


class MappedChunks(FilesChunks):
    """The rows of local Arrow files, mapped into memory: each is a chunk, as quick as any other."""

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

    def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
        """One row."""
        self.require(chunk)
        if start:
            return
        number = bisect.bisect_right(self._ends, chunk)
        batch, first = self._batches[number], self._ends[number - 1] if number else 0
        part = batch.slice(chunk - first, 1)
        yield (self._place(number, chunk - first), *batch_rows(part, self.source.max_row_bytes))

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
            batches: list[Any] = []
            file_of: list[int] = []
            for number, file in enumerate(self.files):
                with reading(file.address):
                    found = _batches(file.path)
                batches += found
                file_of += [number] * len(found)
            ends = list(itertools.accumulate(batch.num_rows for batch in batches))
            self._mapped = batches, file_of, ends
        return self._mapped


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
