"""A source config -> its chunks, by whatever opener reads sources of its kind."""

import itertools
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from controlllm.common.errors import DataError
from controlllm.common.storage.remote import is_remote, shown
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.arrow import is_saved, saved_chunks
from controlllm.data.sources.chunks import (
    MEMORY_BYTES,
    Chunks,
    MemoryChunks,
    chained,
    first_rows,
    take,
)
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.finding import Folder, find_files, is_glob, local_path, with_types
from controlllm.data.sources.registry import (
    FILE_CHUNKS,
    READ_BY_SOURCE,
    READ_BY_TYPE,
    SOURCES,
    register_source,
    require_read,
    type_of_ending,
)
from controlllm.data.sources.splits import choose_split, files_by_split

__all__ = ["SMALL_BYTES", "kind_of_source", "open_chunks", "open_files"]

SMALL_BYTES = 8 * 2**20
"""Files of at most so many bytes in all are held in memory, so that their shuffle is perfect."""

_LOADED_AT_ONCE = 8


def open_chunks(source: SourceConfig, timeout: float = 60.0) -> Chunks:
    """Open a source.

    Raises:
        ConfigError: `source_type` or `file_type` is not known, or a field is given that the opener
            does not read.
        DataError: nothing is there, it cannot be read, or it is broken as a whole.
    """
    kind = kind_of_source(source)
    opener = SOURCES.get(kind)
    require_read(source, READ_BY_SOURCE[kind], f"`source_type: {kind}`")
    return first_rows(opener(source, timeout), source.max_rows)


def kind_of_source(source: SourceConfig) -> str:
    """Its `source_type`; where it has none, `files`, unless only the Hub can have it."""
    if source.source_type:
        return source.source_type
    path = local_path(source.path)
    if is_remote(source.path) or os.path.exists(path) or is_glob(path):
        return "files"
    hub_name = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source.path)
    return "hub" if hub_name and type_of_ending(source.path) is None else "files"


@register_source("files", reads=("file_type", "text_unit", "split", "storage_options"))
def open_files(source: SourceConfig, timeout: float) -> Chunks:
    """Chunks of files, by their types; a folder that `save_to_disk` wrote is one data set.

    Raises:
        ConfigError: `file_type` is not known, or a field is given that is not read.
        DataError: see `finding`; there is no such split; or a file is empty or broken as a whole.
    """
    found = find_files(source, timeout)
    if isinstance(found, Folder) and source.file_type is None and is_saved(found):
        return saved_chunks(found, source)
    files = with_types(found, source)
    types = sorted({file.file_type for file in files})
    reads = {"file_type"}.union(*map(READ_BY_TYPE.__getitem__, types))
    place = "at an address" if is_remote(source.path) else "on this machine"
    reads |= {"storage_options"} if is_remote(source.path) else set()
    what = f"files of type {', '.join(types)} {place}"
    if not isinstance(found, Folder):
        require_read(source, reads, f"{what}, given by a path or glob")
        return _open(files, source, source.max_rows)
    require_read(source, reads | {"split"}, f"a folder of {what}")
    by_split = files_by_split(found.path, files)
    most = source.max_rows if source.split in by_split else None
    where = shown(source.path)
    return choose_split(
        lambda name: _open(by_split[name], source, most), by_split, source.split, where
    )


def _chunks(files: Sequence[SourceFile], source: SourceConfig) -> Chunks:
    """Chunks of files; a glob may match several types."""
    groups = itertools.groupby(files, key=lambda file: file.file_type)
    return chained([FILE_CHUNKS.get(kind)(list(group), source) for kind, group in groups])


def _open(files: Sequence[SourceFile], source: SourceConfig, most: int | None) -> Chunks:
    """Chunks of files; of small ones in memory, unless the rows in them are large."""
    if sum(SMALL_BYTES + 1 if file.size is None else file.size for file in files) > SMALL_BYTES:
        return _chunks(files, source)
    with ThreadPoolExecutor(_LOADED_AT_ONCE) as pool:
        loaded = list(pool.map(lambda file: file.load(SMALL_BYTES), files))
    chunks = _chunks([replace(file, ranged=True) for file in loaded], source)
    rows = take(itertools.islice(chunks.rows(), most), MEMORY_BYTES)
    if rows is None:
        return _chunks(files, source)
    if not rows:
        raise DataError(f"{shown(source.path)} holds no rows.")
    return MemoryChunks(rows, chunks.fingerprint, chunks.stamp)
