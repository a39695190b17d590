"""What can be read, by name: openers of whole sources, and readers of one file.

```
register_source(name)                 (source, timeout) -> Chunks           source_type: name
register_reader(file_type, *endings)  (file, source) -> rows of one file    file_type: name
register_chunks(file_type, *endings)  (files, source) -> Chunks             the same, cut finer
```
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from controlllm.common.errors import ConfigError, DataError
from controlllm.common.registry import Registry
from controlllm.common.settings import Rule, check_said
from controlllm.common.storage.remote import shown
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.chunks import Chunks, Located
from controlllm.data.sources.files import SourceFile, ending, identify, reading

__all__ = [
    "FILE_CHUNKS",
    "READERS",
    "READ_BY_TYPE",
    "SOURCES",
    "ChunkMaker",
    "FileChunks",
    "FilesChunks",
    "Opener",
    "Reader",
    "known_endings",
    "register_chunks",
    "register_reader",
    "register_source",
    "require_read",
    "type_of_ending",
]

Opener: TypeAlias = Callable[[SourceConfig, float], Chunks]
"""(source, seconds to wait for an answer) -> its chunks."""

Reader: TypeAlias = Callable[[SourceFile, SourceConfig], Iterator[Located]]
"""(file, source) -> its rows, each with its place."""


ChunkMaker: TypeAlias = Callable[[Sequence[SourceFile], SourceConfig], Chunks]
"""(files, source) -> chunks of the rows of all files."""

SOURCES: Registry[Opener] = Registry("source_type")
"""Openers of sources: `files`, `saved`, `hub`, and those of plugins."""

READERS: Registry[Reader] = Registry("file_type")
"""Readers of files that are not cut: one chunk each."""

FILE_CHUNKS: Registry[ChunkMaker] = Registry("file_type")
"""Makers of chunks for every file type."""

READ_BY_TYPE: dict[str, frozenset[str]] = {}
"""File type -> fields of a source that its reader reads and others do not."""

_ENDINGS: dict[str, str] = {}
T = TypeVar("T", bound=ChunkMaker)

register_source = SOURCES.register


def register_chunks(file_type: str, *endings: str) -> Callable[[T], T]:
    """Decorate a maker of chunks for files of one type; see `register_reader`.

    Raises:
        ConfigError: the name or an ending is taken.
    """

    def keep(maker: T) -> T:
        FILE_CHUNKS.register(file_type)(maker)
        for name in endings:
            if _ENDINGS.setdefault(name.lower(), file_type) != file_type:
                raise ConfigError(
                    f"the ending {name!r} belongs to file_type={_ENDINGS[name.lower()]!r} already; "
                    f"leave it out, and set `file_type: {file_type}` where it is meant."
                )
        return maker

    return keep


def type_of_ending(name: str) -> str | None:
    """The file type that a name tells, if any."""
    return _ENDINGS.get(ending(name))


def known_endings() -> list[str]:
    """All endings that tell a type."""
    return sorted(_ENDINGS)


class FilesChunks(Chunks):
    """Chunks of the rows of some files of one type.

    Args:
        files: in order; none is empty.
        source: the options they are read with.
        *identity: whatever else the rows and the cuts between chunks depend on.

    Raises:
        DataError: a file is empty or cannot be read.
    """

    def __init__(self, files: Sequence[SourceFile], source: SourceConfig, *identity: Any) -> None:
        for file in files:
            if file.size == 0 and file.file_type != "text":
                raise DataError(f"{file} is empty.")
        self.files = list(files)
        self.source = source
        self.fingerprint, self.stamp = identify(files, source, *identity)
        sizes = [file.size for file in files]
        self.num_bytes = None if None in sizes else sum(size or 0 for size in sizes)


class FileChunks(FilesChunks):
    """A file is a chunk, read from its beginning by the reader of its type."""

    def __init__(self, files: Sequence[SourceFile], source: SourceConfig) -> None:
        super().__init__(files, source)
        if files[0].file_type == "text" and source.text_unit == "file":
            self.num_rows = len(files)

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
        """The rows of one file."""
        self.require(chunk)
        file = self.files[chunk]
        # By name: the functions of plugins do not travel into worker processes.
        reader = READERS.get(file.file_type)
        with reading(file.address):
            yield from islice(reader(file, self.source), start, None)


def register_reader(
    file_type: str, *endings: str, reads: Collection[str] = ()
) -> Callable[[Reader], Reader]:
    """Decorate a reader of one file, to make a file type known. Each file is one chunk.

    Args:
        file_type: its name, as `file_type` in a config.
        *endings: of files of this type (`.jsonl`), without `.gz` and `.zst`.
        reads: fields of a source that it reads and readers of other types do not (`text_unit`).

    Raises:
        ConfigError: the name or an ending is taken.
    """

    def keep(reader: Reader) -> Reader:
        READERS.register(file_type)(reader)
        register_chunks(file_type, *endings)(FileChunks)
        READ_BY_TYPE[file_type] = frozenset(reads)
        return reader

    return keep


_READ_BY_SOME = {
    "file_type": "only files have one",
    "text_unit": "only plain text and Markdown read it; leave it out",
    "subset": "only data sets of the Hub have one, and folders laid out like one with "
    "`source_type: hub`; give the path of the wanted files instead",
    "split": "only folders and data sets of the Hub have splits; give the path of the wanted files "
    "instead, or `max_rows`",
    "revision": "only data sets of the Hub have revisions; leave it out",
    "streaming": "only data sets of the Hub are streamed; files are never downloaded as a whole",
    "storage_options": "only addresses (`s3://...`) and data sets of the Hub read them",
}
"""Fields that only some openers read, and when."""


def require_read(source: SourceConfig, reads: Collection[str]) -> None:
    """Check that an opener reads every field that a source gives.

    Raises:
        ConfigError: with the field, its value, and what to do.
    """
    rules = [
        Rule(name, lambda _: False, remedy)
        for name, remedy in _READ_BY_SOME.items()
        if name not in reads
    ]
    try:
        check_said(source, rules)
    except ConfigError as error:
        raise ConfigError(f"source {source.name!r} ({shown(source.path)}): {error}") from None
