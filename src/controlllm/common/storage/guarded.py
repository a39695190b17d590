"""An fsspec file system whose every wait ends, that survives a fork, and that can be pickled.

Clients differ: some have no time-outs, some retry for minutes, some may not be used after a fork,
nor even be destroyed. So each call has a deadline, and each process a client of its own.
"""

import gc
import io
import os
from collections.abc import Callable
from functools import cache
from typing import Any, cast

from fsspec import AbstractFileSystem, get_filesystem_class
from fsspec.spec import AbstractBufferedFile

from controlllm.common.storage.deadline import Deadline

__all__ = ["PIECE_BYTES", "GuardedFileSystem"]

PIECE_BYTES = 4 * 2**20
_INHERITED: list[AbstractFileSystem] = []
"""Clients of the process that this one was forked from: their threads did not come along, and a
destructor that waits for these would wait for ever."""


def _with_deadline(name: str) -> Any:
    """A method that calls the client's, with a deadline."""

    def call(self: "GuardedFileSystem", *args: Any, **kwargs: Any) -> Any:
        return self._run(name, *args, **kwargs)

    return call


class GuardedFileSystem(AbstractFileSystem):
    """A file system whose every call has a deadline."""

    cachable = False

    def __init__(self, scheme: str, options: dict[str, Any], timeout: float, server: str) -> None:
        super().__init__()
        self.protocol = scheme
        self.options = options
        self.deadline = Deadline(server, timeout)
        self._client: tuple[int, AbstractFileSystem] | None = None
        self._class = _client_class(scheme)
        # fsspec declares it on the class; here each instance has its client's.
        self._strip_protocol = self._class._strip_protocol

    def __reduce__(self) -> Any:
        """Only what it was made from travels; the client is made anew."""
        made_from = (self.protocol, self.options, self.deadline.seconds, self.deadline.server)
        return type(self), made_from

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GuardedFileSystem) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self.protocol, self.deadline.server))

    @property
    def client(self) -> AbstractFileSystem:
        """The client's file system, made in this process."""
        if self._client is None or self._client[0] != os.getpid():
            if self._client is not None:
                _INHERITED.append(self._client[1])
            made = self._class(**self._client_options(), skip_instance_cache=True)
            self._client = (os.getpid(), made)
        return self._client[1]

    info = _with_deadline("info")

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        """See fsspec."""
        return self._run("ls", path, detail=detail, **kwargs)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether something is there; a server that cannot say is an error, and not a "no"."""
        return self._type(path) is not None

    def isdir(self, path: str) -> bool:
        """Whether a folder is there; errors as for `exists`."""
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Whether a file is there; errors as for `exists`."""
        return self._type(path) == "file"

    def walk(self, path: str, *args: Any, on_error: Any = None, **kwargs: Any) -> Any:
        """See fsspec; but a folder that cannot be listed is an error, and not an empty one."""
        return super().walk(path, *args, on_error=on_error or _only_missing, **kwargs)

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """See fsspec; http(s) finds the links of a page, others walk over the calls above."""
        if self.protocol in ("http", "https"):
            return self._run("glob", path, maxdepth=maxdepth, **kwargs)
        return super().glob(path, maxdepth=maxdepth, **kwargs)

    mkdir, makedirs, mv, rm, rm_file, rmdir = map(
        _with_deadline, ("mkdir", "makedirs", "mv", "rm", "rm_file", "rmdir")
    )
    cp_file, created, modified, ukey = map(
        _with_deadline, ("cp_file", "created", "modified", "ukey")
    )

    def invalidate_cache(self, path: str | None = None) -> None:
        """See fsspec."""
        self.client.invalidate_cache(path)

    def put_file(self, lpath: Any, rpath: str, callback: Any = None, **kwargs: Any) -> None:
        """Upload one file, in one stream where the client can; see fsspec."""
        if not hasattr(self.client, "put_stream"):
            copied = {} if callback is None else {"callback": callback}
            super().put_file(lpath, rpath, **copied, **kwargs)
            return
        with open(lpath, "rb") as file:
            self.deadline.run_long(
                lambda progress: self.client.put_stream(_Watched(file, progress), rpath)
            )

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode not in ("rb", "wb"):
            raise ValueError(f"{path}: mode {mode!r} is not supported; use rb or wb.")
        if mode != "rb":
            return _Writer(self._run("open", path, mode), self.deadline)
        inner = self.open_inner(path)
        if getattr(inner, "size", None) is None:
            return io.BufferedReader(_Stream(inner, self.deadline), PIECE_BYTES)
        return _Reader(self, path, inner, **kwargs)

    def open_inner(self, path: str) -> Any:
        """The client's own file, for reading, without a cache."""
        return self._run("open", path, "rb", cache_type="none")

    def _type(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return None

    def _run(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.deadline.run(lambda: getattr(self.client, name)(*args, **kwargs))

    def _client_options(self) -> dict[str, Any]:
        """The user's options and, where the client has some, time-outs of its own."""
        options = dict(self.options)
        if self.protocol == "webhdfs":
            options.setdefault("timeout", self.deadline.seconds)
        if self.protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            from controlllm.common.storage.http_client import client_of

            seconds, given = self.deadline.seconds, options.get("client_kwargs", {})
            limits = ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
            options["client_kwargs"] = {"timeout": limits, **given}
            proxied = bool(options.get("proxy") or given.get("proxy") or given.get("trust_env"))
            options.setdefault("get_client", client_of(self.deadline.server, proxied))
        return options


class _Reader(AbstractBufferedFile):
    """A file of known size: fsspec's read-ahead, filled in pieces with a deadline each."""

    def __init__(self, fs: GuardedFileSystem, path: str, inner: Any, **kwargs: Any) -> None:
        self.inner = inner
        kwargs.pop("size", None)
        super().__init__(fs, path, mode="rb", size=inner.size, **kwargs)

    def _fetch_range(self, start: int, end: int) -> bytes:
        end = min(end, self.size)
        places = range(start, end, PIECE_BYTES)
        return b"".join(self._piece(at, min(PIECE_BYTES, end - at)) for at in places)

    def _piece(self, start: int, length: int) -> bytes:
        if self.inner is None:
            self.inner = self.fs.open_inner(self.path)
        try:
            data = self.fs.deadline.run(lambda at: (at.seek(start), at.read(length))[1], self.inner)
        except TimeoutError:
            self.inner = None  # The late call may still move its position.
            raise
        if len(data) != length:
            raise OSError(
                f"{self.path}: {len(data)} bytes came instead of {length} (from {start} on); the "
                "file was changed, or the connection broke"
            )
        return data


class _Stream(io.RawIOBase):
    """A file of unknown size, read from its beginning to its end."""

    def __init__(self, inner: Any, deadline: Deadline) -> None:
        self.inner = inner
        self.deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.deadline.run(self.inner.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Writer(io.RawIOBase):
    """A file to write, in pieces with a deadline each."""

    def __init__(self, inner: Any, deadline: Deadline) -> None:
        self.inner = inner
        self.deadline = deadline

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for at in range(0, len(view), PIECE_BYTES):
            self.deadline.run(self.inner.write, bytes(view[at : at + PIECE_BYTES]))
        return len(view)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self.deadline.run(self.inner.close)


class _Watched:
    """A local file that tells whenever a piece of it was taken."""

    def __init__(self, file: Any, progress: Callable[[], None]) -> None:
        self.file = file
        self.progress = progress

    def __len__(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        self.progress()
        data: bytes = self.file.read(size)
        return data


def _client_class(scheme: str) -> type[AbstractFileSystem]:
    """The client of a scheme.

    Raises:
        ImportError: if its package is not installed.
        ValueError: if the scheme is not known.
    """
    if scheme == "webhdfs":
        from controlllm.common.storage.webhdfs import WebHdfsClient

        return WebHdfsClient
    if scheme in ("hdfs", "viewfs"):  # fsspec's own needs a JVM.
        from hdfs_native import fsspec as native

        _keep_garbage_over_forks()
        return cast(
            type[AbstractFileSystem],
            native.HdfsFileSystem if scheme == "hdfs" else native.ViewfsFileSystem,
        )
    return cast(type[AbstractFileSystem], get_filesystem_class(scheme))


@cache
def _keep_garbage_over_forks() -> None:
    """Let no forked process collect what it inherited: such a client may be among it."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=gc.freeze)


def _only_missing(error: OSError) -> None:
    """What `walk` may pass over: a folder that is not there."""
    if not isinstance(error, FileNotFoundError):
        raise error
