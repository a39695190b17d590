"""What can be read, by name: openers of whole sources, and readers of one file.

```
register_source(name)                 (source, timeout) -> Chunks           source_type: name
register_reader(file_type, *endings)  (file, source) -> rows of one file    file_type: name
register_chunks(file_type, *endings)  (files, source) -> Chunks             the same, cut finer
```
Each takes `reads=`: the fields of a source that it reads, of those that not every source has.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias, TypeVar, cast

from controlllm.common.errors import ConfigError, DataError
from controlllm.common.registry import Registry, check_choice
from controlllm.common.settings import Rule, check_said
from controlllm.common.storage.remote import shown
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.chunks import Chunks, Located, total
from controlllm.data.sources.files import SourceFile, ending, identify, reading

__all__ = [
    "FILE_CHUNKS",
    "OPENER_FIELDS",
    "READERS",
    "READ_BY_SOURCE",
    "READ_BY_TYPE",
    "SOURCES",
    "FileChunks",
    "FilesChunks",
    "known_endings",
    "readers_of",
    "register_chunks",
    "register_reader",
    "register_source",
    "require_read",
    "type_of_ending",
]

OPENER_FIELDS = (
    "file_type",
    "text_unit",
    "subset",
    "split",
    "revision",
    "streaming",
    "storage_options",
)
"""Fields of a source that only some openers and readers read; each says which."""

_OF_FILES = {"split": "folders", "storage_options": "addresses (`s3://...`)"}
"""Of the files, which read a field."""

Open: TypeAlias = Callable[[SourceConfig, float], Chunks]
"""(source, seconds to wait for an answer) -> its chunks."""


Reader: TypeAlias = Callable[[SourceFile, SourceConfig], Iterator[Located]]
"""(file, source) -> its rows, each with its place."""


ChunkMaker: TypeAlias = Callable[[Sequence[SourceFile], SourceConfig], Chunks]
"""(files, source) -> chunks of the rows of all files."""

SOURCES: Registry[Open] = Registry("source_type")
"""Openers of sources by `source_type`: `files`, `saved`, `hub`, and those of plugins."""

READERS: Registry[Reader] = Registry("file_type")
"""Readers of files that are not cut: one chunk each."""

FILE_CHUNKS: Registry[ChunkMaker] = Registry("file_type")
"""Makers of chunks for every file type."""

READ_BY_SOURCE: dict[str, frozenset[str]] = {}
READ_BY_TYPE: dict[str, frozenset[str]] = {}
"""Source type, or file type -> which of `OPENER_FIELDS` are read by its opener or reader."""

_ENDINGS: dict[str, str] = {}
T = TypeVar("T", bound=ChunkMaker | Open)


def register_source(name: str, reads: Collection[str] = ()) -> Callable[[T], T]:
    """Decorate an opener `(source, timeout) -> chunks`, to make a kind of source known.

    Args:
        name: what `source_type` of a source says.
        reads: which of `OPENER_FIELDS` it reads; a source that gives another one is refused.

    Raises:
        ConfigError: the name is taken, or a field is none of `OPENER_FIELDS`.
    """

    def keep(function: T) -> T:
        fields = _checked(reads)
        SOURCES.register(name)(cast(Open, function))
        READ_BY_SOURCE[name] = fields
        return function

    return keep


def _checked(reads: Collection[str]) -> frozenset[str]:
    for field in reads:
        check_choice("reads", field, OPENER_FIELDS)
    return frozenset(reads)


def register_chunks(file_type: str, *endings: str, reads: Collection[str] = ()) -> Callable[[T], T]:
    """Decorate a maker of chunks for files of one type; see `register_reader`.

    Raises:
        ConfigError: the name or an ending is taken, or a field is none of `OPENER_FIELDS`.
    """

    def keep(maker: T) -> T:
        FILE_CHUNKS.register(file_type)(cast(ChunkMaker, maker))
        READ_BY_TYPE[file_type] = _checked(reads)
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
    """Chunks of the rows of some files of one type, in order.

    `identity` is whatever else the rows and the cuts between chunks depend on.

    Raises:
        DataError: a file is empty or cannot be read.
    """

    def __init__(self, files: Sequence[SourceFile], source: SourceConfig, *identity: Any) -> None:
        for file in files:
            if file.size == 0 and file.file_type != "text":
                raise DataError(f"{file} is empty.")
        self.files, self.source = list(files), source
        self.fingerprint, self.stamp = identify(files, source, *identity)
        self.num_bytes = total(file.size for file in files)


class FileChunks(FilesChunks):
    """A file is a chunk, read from its beginning by the reader of its type."""

    def __init__(self, files: Sequence[SourceFile], source: SourceConfig) -> None:
        super().__init__(files, source)
        if files[0].file_type == "text" and source.text_unit == "file":
            self.num_rows = len(files)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
        """The rows of one file."""
        self.require(chunk)
        file = self.files[chunk]
        with reading(file.address):
            # By name: the functions of plugins do not travel into worker processes.
            yield from islice(READERS.get(file.file_type)(file, self.source), start, None)


def register_reader(
    file_type: str, *endings: str, reads: Collection[str] = ()
) -> Callable[[Reader], Reader]:
    """Decorate a reader of one file, to make a file type known. Each file is one chunk.

    Args:
        file_type: its name, as `file_type` in a config.
        *endings: of files of this type (`.jsonl`), without `.gz` and `.zst`.
        reads: which of `OPENER_FIELDS` it reads; a source that gives another one is refused.

    Raises:
        ConfigError: the name or an ending is taken, or a field is none of `OPENER_FIELDS`.
    """

    def keep(reader: Reader) -> Reader:
        READERS.register(file_type)(reader)
        register_chunks(file_type, *endings, reads=reads)(FileChunks)
        return reader

    return keep


def require_read(source: SourceConfig, reads: Collection[str], kind: str) -> None:
    """Check that every field that a source gives is among those that its `kind` reads.

    Raises:
        ConfigError: with the field, its value, the kind of source, and what would read it.
    """
    because = "only {} can use it, and this is {}; leave it out"
    rules = [
        Rule(name, lambda _: False, because.format(readers_of(name), kind))
        for name in OPENER_FIELDS
        if name not in reads
    ]
    try:
        check_said(source, rules)
    except ConfigError as error:
        raise ConfigError(f"source {source.name!r} ({shown(source.path)}): {error}") from None


def readers_of(field: str) -> str:
    """What reads a field of `OPENER_FIELDS`, as messages and the page on data sources say it."""
    types = [f"`file_type: {name}`" for name, fields in READ_BY_TYPE.items() if field in fields]
    found = [
        _OF_FILES.get(field, "files") if name == "files" else f"`source_type: {name}`"
        for name in SOURCES.names()
        if field in READ_BY_SOURCE[name] and not (types and name == "files")
    ]
    return " and ".join(types + found) or "no source that is known"
