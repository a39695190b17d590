"""One file of a source, on this machine or elsewhere: what is known of it, and how it is opened."""

import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from controlllm.common.errors import DataError
from controlllm.common.storage.remote import describe
from controlllm.data.config.source_config import SourceConfig

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["SourceFile", "digest", "ending", "identify", "reading"]

COMPRESSED = (".gz", ".zst")
BUFFER_BYTES, REMOTE_BUFFER_BYTES = 2**17, 2**20
"""How much of a file is fetched at once, here and elsewhere, if nothing else is said."""

TRIES = 3
"""How often a read that breaks off is tried, each time from where it stood."""


@contextmanager
def reading(address: str) -> Iterator[None]:
    """Turn the errors of disks, networks and unpackers into one that names `address`.

    Raises:
        DataError: for every `OSError` and error of Arrow, gzip or zstd inside the block.
    """
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, EOFError, zlib.error, ArrowException) as error:
        raise DataError(describe(error, address)) from error


def ending(name: str) -> str:
    """The ending that tells the type: `.jsonl` of `a.jsonl.gz`."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. `open` gives its bytes, unpacked; messages call it `address`."""

    address: str
    """As messages name it: a path, or the whole address."""
    path: str
    """Where it lies on its file system."""
    file_type: str
    """Which reader reads it."""
    size: int | None
    """Bytes as stored; None where a web server does not tell."""
    stamp: str = ""
    """When it was touched: a time, an ETag, a checksum."""
    filesystem: "AbstractFileSystem | None" = None
    """Where it lies; None = on this machine."""
    ranged: bool = True
    """Whether it can be read from anywhere (some web servers only read from the beginning)."""
    content: bytes | None = None
    """Its bytes as stored, where they are held in memory."""

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The path in small letters, without the query of a web address."""
        return (urlsplit(self.path).path if "://" in self.path else self.path).lower()

    @property
    def packed(self) -> bool:
        """Whether it is compressed as a whole."""
        return self.name.endswith(COMPRESSED)

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine's disk and is to be read from there."""
        return self.filesystem is None and self.content is None

    @property
    def can_be_cut(self) -> bool:
        """Whether a part of it can be read without reading what comes before."""
        is_known = self.size is not None and self.content is None
        return is_known and self.ranged and not self.packed

    def open_raw(self, buffer_bytes: int | None = None) -> IO[bytes]:
        """Its bytes as stored; can be sought in if `ranged`."""
        buffer_bytes = buffer_bytes or (BUFFER_BYTES if self.is_local else REMOTE_BUFFER_BYTES)
        if self.content is not None:
            return io.BytesIO(self.content)
        if self.filesystem is None:
            return self._open_here(buffer_bytes)
        if self.ranged and self.size is not None:
            return io.BufferedReader(_Resumed(self), buffer_bytes)
        return cast(IO[bytes], self.filesystem.open(self.path, "rb"))

    def open(self, buffer_bytes: int | None = None) -> IO[bytes]:
        """Its bytes, unpacked."""
        raw = self.open_raw(buffer_bytes)
        if self.name.endswith(".gz"):
            unpacked: Any = gzip.GzipFile(fileobj=raw)
            unpacked.myfileobj = raw  # Closed with it.
            return io.BufferedReader(unpacked, BUFFER_BYTES)
        if self.name.endswith(".zst"):
            import pyarrow as pa

            # Arrow's stream knows no lines; the buffer around it does.
            stream: Any = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
            return io.BufferedReader(stream, BUFFER_BYTES)
        return raw

    def _open_here(self, buffer_bytes: int) -> IO[bytes]:
        """Open a local file, which must not have become shorter than it was."""
        size = os.stat(self.path).st_size
        if self.size is not None and size < self.size:
            text = f"{self} has changed: it has {size:,} bytes, not {self.size:,} as before."
            raise DataError(text)
        return open(self.path, "rb", buffering=buffer_bytes)

    def load(self, most_bytes: int) -> "SourceFile":
        """The same file with its bytes held in memory.

        Raises:
            DataError: it cannot be read, or holds more.
        """
        with reading(self.address), self.open_raw(1 << 20) as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise DataError(
                f"{self} holds more than {most_bytes:,} bytes, and should hold less; "
                "was it replaced?"
            )
        return replace(self, content=content)


class _Resumed(io.RawIOBase):
    """A file elsewhere that is opened again, where it stood, when a read breaks off."""

    def __init__(self, file: SourceFile) -> None:
        self._file, self._size, self._at = file, file.size or 0, 0
        self._inner: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._at))
        data = self._read(wanted, TRIES - 1) if wanted else b""
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, wanted: int, more_tries: int) -> bytes:
        try:
            return self._read_once(wanted)
        except (FileNotFoundError, PermissionError, TimeoutError):
            raise
        except OSError:
            self._inner = None
            if not more_tries:
                raise
        return self._read(wanted, more_tries - 1)

    def _read_once(self, wanted: int) -> bytes:
        assert self._file.filesystem is not None
        if self._inner is None:
            self._inner = self._file.filesystem.open(self._file.path, "rb", cache_type="none")
        self._inner.seek(self._at)
        data: bytes = self._inner.read(wanted)
        if not data:
            raise OSError(f"it ends at byte {self._at} of {self._size}")
        return data

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
        super().close()


SAMPLE_BYTES = 2**16
"""Size of the samples of a large file that are hashed."""

SAMPLED_FILES, SAMPLED_REMOTE_FILES = 32, 2
"""Files of a large source of which samples are hashed; of all others the sizes count."""


def digest(*parts: Any) -> str:
    """A hash of texts, numbers and bytes."""
    hasher = blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "big"))
        hasher.update(data)
    return hasher.hexdigest()


def identify(files: Sequence[SourceFile], source: SourceConfig, *more: Any) -> tuple[str, str]:
    """Fingerprint and stamp of files that are read with the options of a source (see `Chunks`).

    Files in memory are hashed whole. Of others the sizes are, and samples of some of them: their
    start, middle and end. `more` is whatever else the rows and the cuts between chunks depend on.

    Raises:
        DataError: a file cannot be read.
    """
    options = (source.text_unit, source.max_row_bytes, *more)
    sizes = [(file.file_type, file.size, file.packed) for file in files]
    content = digest(options, sizes, *(piece for file in _chosen(files) for piece in _pieces(file)))
    return content, digest([(file.address, file.size, file.stamp) for file in files])


def _chosen(files: Sequence[SourceFile]) -> Sequence[SourceFile]:
    """All files that are in memory, else the first, the last and some between them."""
    most = SAMPLED_FILES if files[0].filesystem is None else SAMPLED_REMOTE_FILES
    if len(files) <= most or all(file.content is not None for file in files):
        return files
    last = len(files) - 1
    return [files[last * i // (most - 1)] for i in range(most)]


def _pieces(file: SourceFile) -> Iterator[bytes]:
    if file.content is not None:
        yield file.content
        return
    if not file.ranged or file.size is None:
        return
    starts = {0, max(0, file.size - SAMPLE_BYTES)}
    if file.is_local:
        starts.add(max(0, file.size // 2 - SAMPLE_BYTES // 2))
    with reading(file.address), file.open_raw(SAMPLE_BYTES) as opened:
        for start in sorted(starts):
            opened.seek(start)
            yield opened.read(SAMPLE_BYTES)
