"""What can be read, by name: openers of whole sources, and readers of one file.

```
register_source(name)                 (source, timeout) -> Blocks           source_type: name
register_reader(file_type, *endings)  (file, source) -> rows of one file    file_type: name
register_blocks(file_type, *endings)  (files, source) -> Blocks             the same, cut finer
```
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias, TypeVar

from controlllm.common.errors import ConfigError
from controlllm.common.registry import Registry
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.blocks import Blocks, Located
from controlllm.data.sources.files import SourceFile, ending

__all__ = [
    "FILE_BLOCKS",
    "READERS",
    "READ_BY_TYPE",
    "SOURCES",
    "BlockMaker",
    "Opener",
    "Reader",
    "known_endings",
    "register_blocks",
    "register_source",
    "type_of_ending",
]

Opener: TypeAlias = Callable[[SourceConfig, float], Blocks]
"""(source, seconds to wait for an answer) -> its blocks."""

Reader: TypeAlias = Callable[[SourceFile, SourceConfig], Iterator[Located]]
"""(file, source) -> its rows, each with its place."""


class BlockMaker(Protocol):
    """Makes blocks of files of one type."""

    def __call__(self, files: Sequence[SourceFile], source: SourceConfig, /) -> Blocks:
        """Blocks of the rows of all files."""


SOURCES: Registry[Opener] = Registry("source_type")
"""Openers of sources: `files`, `saved`, `hub`, and those of plugins."""

READERS: Registry[Reader] = Registry("file_type")
"""Readers of files that are not cut: one block each."""

FILE_BLOCKS: Registry[BlockMaker] = Registry("file_type")
"""Makers of blocks for every file type."""

READ_BY_TYPE: dict[str, frozenset[str]] = {}
"""File type -> fields of a source that its reader reads and others do not."""

_ENDINGS: dict[str, str] = {}
T = TypeVar("T", bound=BlockMaker)

register_source = SOURCES.register


def register_blocks(file_type: str, *endings: str) -> Callable[[T], T]:
    """Decorate a maker of blocks for files of one type; see `register_reader`.

    Raises:
        ConfigError: the name or an ending is taken.
    """

    def keep(maker: T) -> T:
        FILE_BLOCKS.register(file_type)(maker)
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
