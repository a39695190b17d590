"""Blocks made of files: what all kinds share, and the plainest kind, where a file is a block."""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.blocks import Blocks, Located
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.identity import identify
from controlllm.data.sources.registry import READ_BY_TYPE, READERS, Reader, register_blocks
from controlllm.data.sources.trouble import reading

__all__ = ["FileBlocks", "FilesBlocks", "register_reader"]


class FilesBlocks(Blocks):
    """Blocks of the rows of some files of one type.

    Args:
        files: in order; none is empty.
        source: the options they are read with.
        *identity: whatever else the rows and the cuts between blocks depend on.

    Raises:
        DataError: a file is empty or cannot be read.
    """

    def __init__(self, files: Sequence[SourceFile], source: SourceConfig, *identity: Any) -> None:
        for file in files:
            if file.size == 0 and file.file_type != "text":
                raise DataError(f"{file} is empty.")
        self.files = list(files)
        self.source = source
        self._identity = identify(files, source, *identity)
        sizes = [file.size for file in files]
        self.num_bytes = None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def fingerprint(self) -> str:
        """Of the files' content; see `identity.identify`."""
        return self._identity.fingerprint

    @property
    def stamp(self) -> str:
        """Of the files' addresses, sizes and times."""
        return self._identity.stamp


class FileBlocks(FilesBlocks):
    """A file is a block, read from its beginning by the reader of its type.

    Args:
        files: in order.
        source: the options they are read with.
    """

    def __init__(self, files: Sequence[SourceFile], source: SourceConfig) -> None:
        super().__init__(files, source)
        if files[0].file_type == "text" and source.text_unit == "file":
            self.num_rows = len(files)

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def read(self, block: int, start: int = 0) -> Iterator[Located]:
        """The rows of one file."""
        self.require(block)
        file = self.files[block]
        # By name: the functions of plugins do not travel into worker processes.
        reader = READERS.get(file.file_type)
        with reading(file.address):
            yield from islice(reader(file, self.source), start, None)


def register_reader(
    file_type: str, *endings: str, reads: Collection[str] = ()
) -> Callable[[Reader], Reader]:
    """Decorate a reader of one file, to make a file type known. Each file is one block.

    Args:
        file_type: its name, as `file_type` in a config.
        *endings: of files of this type (`.jsonl`), without `.gz` and `.zst`.
        reads: fields of a source that it reads and readers of other types do not (`text_unit`).

    Raises:
        ConfigError: the name or an ending is taken.
    """

    def keep(reader: Reader) -> Reader:
        READERS.register(file_type)(reader)
        register_blocks(file_type, *endings)(FileBlocks)
        READ_BY_TYPE[file_type] = frozenset(reads)
        return reader

    return keep
