"""Arrow files, in both forms (IPC file and stream), and folders that `save_to_disk` wrote of them.

```
on this machine, not compressed    chunk = one row     mapped into memory, nothing is copied
otherwise                          chunk = the file    read in order, message by message
```
"""

import itertools
import json
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from controlllm.common.errors import DataError
from controlllm.common.storage.remote import is_remote, shown
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.arrowmessages import MAGIC, CheckedStream, packed_buffers
from controlllm.data.sources.arrowrows import batch_rows
from controlllm.data.sources.chunks import Chunks, Located, RowChunks, chained, locate
from controlllm.data.sources.files import SourceFile, identify, reading
from controlllm.data.sources.finding import SAVED_MARKS, Folder, find_files
from controlllm.data.sources.limits import most_unpacked
from controlllm.data.sources.registry import (
    READERS,
    FileChunks,
    register_chunks,
    register_source,
    require_read,
)
from controlllm.data.sources.splits import choose_split

__all__ = ["MappedChunks", "arrow_chunks", "is_saved", "read_arrow", "saved_chunks"]


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
        rows = (row for batch in stream for row in batch_rows(batch, source.max_row_bytes))
        for number, row in enumerate(rows):
            yield f"{file}, row {number}", row


_MOST_BYTES = 64 * 2**20
"""Of a JSON file that describes a data set."""


@register_source("saved", reads=("split", "storage_options"))
def open_saved(source: SourceConfig, timeout: float) -> Chunks:
    """Chunks of a saved data set: rows where it lies on this machine, else one per file.

    Raises:
        DataError: it is no such folder, is not complete, or has no such split.
    """
    folder = find_files(source, timeout)
    if not isinstance(folder, Folder) or not is_saved(folder):
        raise DataError(
            f"{shown(source.path)} is no folder that `save_to_disk` wrote (no "
            f"{' or '.join(SAVED_MARKS)} in it)."
        )
    return saved_chunks(folder, source)


def is_saved(folder: Folder) -> bool:
    """Whether a folder is a saved data set."""
    names = {file.path for file in folder.files}
    return any(posixpath.join(folder.path, name) in names for name in SAVED_MARKS)


def saved_chunks(folder: Folder, source: SourceConfig) -> Chunks:
    """Chunks of the split that `source.split` names.

    Raises:
        DataError: the folder is not complete, or has no such split.
    """
    reads = {"split", "storage_options"} if is_remote(source.path) else {"split"}
    require_read(source, reads, "a folder of `save_to_disk`")
    by_path = {file.path: file for file in folder.files}
    several, one = (posixpath.join(folder.path, name) for name in SAVED_MARKS)
    if several in by_path:
        names = map(str, _field(by_path[several], "splits", list))
        places = {name: posixpath.join(folder.path, name) for name in names}
    else:
        name = _field(by_path[one], "_split", str | None)
        # One that was made in memory has no name.
        places = {name or source.split.partition("[")[0]: folder.path}
    where = shown(source.path)
    return choose_split(
        lambda name: _split(by_path, places[name], source), places, source.split, where
    )


def _split(by_path: dict[str, SourceFile], place: str, source: SourceConfig) -> Chunks:
    state = by_path.get(posixpath.join(place, "state.json"))
    if state is None:
        raise DataError(f"{place}: state.json is missing; save the data set again, to its end.")
    entries = _field(state, "_data_files", list)
    names = [entry.get("filename") if isinstance(entry, dict) else entry for entry in entries]
    paths = [posixpath.join(place, str(name)) for name in names]
    if missing := [path for path in paths if path not in by_path]:
        raise DataError(f"{missing[0]} is missing; save or copy the data set again, to its end.")
    return arrow_chunks([replace(by_path[path], file_type="arrow") for path in paths], source)


def _field(file: SourceFile, name: str, kind: Any) -> Any:
    """What a JSON file of a saved data set says under a name."""
    content = file.load(_MOST_BYTES).content or b""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(values, dict) or not isinstance(values.get(name), kind):
        raise DataError(f"{file}: {name!r} is missing or damaged; save the data set again.")
    return values.get(name)
