"""An fsspec file system whose every wait ends, that survives a fork, and that can be pickled.

Clients differ: some have no time-outs, some retry for minutes, some may not be used after a fork.
So each call runs in a thread of its own with a deadline. A thread that is late is left behind (it
ends when its client gives up), and the caller gets a `TimeoutError`.
"""

import io
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from fsspec import AbstractFileSystem, get_filesystem_class
from fsspec.spec import AbstractBufferedFile

__all__ = ["PIECE_BYTES", "Deadline", "GuardedFileSystem"]

PIECE_BYTES = 4 * 2**20
T = TypeVar("T")


class Deadline:
    """Runs calls that must show progress at least every `seconds` seconds.

    Args:
        server: whom the calls talk to, for the message.
        seconds: the longest time without progress.
    """

    def __init__(self, server: str, seconds: float) -> None:
        self.server = server
        self.seconds = seconds
        self._last = 0.0

    def progress(self) -> None:
        """Tell, from within a long call, that something has arrived or was taken."""
        self._last = time.monotonic()

    def run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The call's result.

        Raises:
            TimeoutError: if it has not ended, nor shown progress, in time.
            OSError: for whatever its client raises.
        """
        answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                answers.put((call(*args, **kwargs), None))
            except BaseException as error:
                answers.put((None, error))

        self.progress()
        threading.Thread(target=work, daemon=True, name=f"waits for {self.server}").start()
        result, error = self._answer(answers)
        if error is not None:
            raise _as_os_error(error, self.server) from error
        return cast(T, result)

    def _answer(self, answers: "queue.SimpleQueue[Any]") -> Any:
        while True:
            left = self._last + self.seconds - time.monotonic()
            try:
                return answers.get(timeout=max(left, 0.001))
            except queue.Empty:
                if time.monotonic() - self._last >= self.seconds:
                    raise TimeoutError(
                        f"{self.server} gave no answer within {self.seconds:g} s; is it up and "
                        "reachable from here? A slow server needs a longer time-out"
                    ) from None


class GuardedFileSystem(AbstractFileSystem):
    """Another file system behind deadlines.

    Args:
        scheme: which one, by its scheme.
        options: its own options.
        timeout: the longest wait in seconds.
        server: how messages name it.
    """

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
        """The file system behind, made in this very process."""
        if self._client is None or self._client[0] != os.getpid():
            made = self._class(**self._client_options(), skip_instance_cache=True)
            self._client = (os.getpid(), made)
        return self._client[1]

    @property
    def fsid(self) -> str:
        """What tells this file system from others of its kind."""
        return f"{self.protocol}-{self.deadline.server}"

    def check_client(self) -> None:
        """Make the client, so that wrong options are told now.

        Raises:
            OSError, TypeError, ValueError: as the client says.
        """
        self.client  # noqa: B018

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """See fsspec."""
        return self._run("info", path, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        """See fsspec."""
        return self._run("ls", path, detail=detail, **kwargs)

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """See fsspec; http(s) finds the links of a page, others walk over the calls above."""
        if self.protocol in ("http", "https"):
            return self._run("glob", path, maxdepth=maxdepth, **kwargs)
        return super().glob(path, maxdepth=maxdepth, **kwargs)

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """See fsspec."""
        self._run("mkdir", path, create_parents=create_parents, **kwargs)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """See fsspec."""
        self._run("makedirs", path, exist_ok=exist_ok)

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        """See fsspec."""
        self._run("mv", path1, path2, **kwargs)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """See fsspec."""
        self._run("rm", path, recursive=recursive)

    def rm_file(self, path: str) -> None:
        """See fsspec."""
        self._run("rm_file", path)

    def rmdir(self, path: str) -> None:
        """See fsspec."""
        self._run("rmdir", path)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """See fsspec."""
        self._run("cp_file", path1, path2, **kwargs)

    def created(self, path: str) -> Any:
        """See fsspec."""
        return self._run("created", path)

    def modified(self, path: str) -> Any:
        """See fsspec."""
        return self._run("modified", path)

    def ukey(self, path: str) -> Any:
        """See fsspec."""
        return self._run("ukey", path)

    def put_file(self, lpath: Any, rpath: str, callback: Any = None, **kwargs: Any) -> None:
        """Upload one file, in one stream where the client can; see fsspec."""
        if not hasattr(self.client, "put_stream"):
            copied = {} if callback is None else {"callback": callback}
            super().put_file(lpath, rpath, **copied, **kwargs)
            return
        with open(lpath, "rb") as file:
            stream = _Watched(file, self.deadline.progress)
            self._run("put_stream", stream, rpath)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode not in ("rb", "wb"):
            raise ValueError(f"{path}: mode {mode!r} is not supported; use rb or wb.")
        if mode != "rb":
            return _Writer(self._run("open", path, mode), self.deadline)
        inner = self._run("open", path, "rb", cache_type="none")
        if getattr(inner, "size", None) is None:
            return io.BufferedReader(_Stream(inner, self.deadline), PIECE_BYTES)
        return _Reader(self, path, inner, **kwargs)

    def _run(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.deadline.run(lambda: getattr(self.client, name)(*args, **kwargs))

    def _client_options(self) -> dict[str, Any]:
        """The user's options and, where the client has some, time-outs of its own."""
        options = dict(self.options)
        if self.protocol == "webhdfs":
            options.setdefault("timeout", self.deadline.seconds)
        if self.protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            seconds = self.deadline.seconds
            limits = ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
            options["client_kwargs"] = {"timeout": limits, **options.get("client_kwargs", {})}
        return options


class _Reader(AbstractBufferedFile):
    """A file of known size: fsspec's read-ahead, filled in pieces with a deadline each."""

    def __init__(self, fs: GuardedFileSystem, path: str, inner: Any, **kwargs: Any) -> None:
        self.inner = inner
        self.deadline = Deadline(fs.deadline.server, fs.deadline.seconds)
        kwargs.pop("size", None)
        super().__init__(fs, path, mode="rb", size=inner.size, **kwargs)

    def _fetch_range(self, start: int, end: int) -> bytes:
        pieces = []
        for at in range(start, min(end, self.size), PIECE_BYTES):
            length = min(PIECE_BYTES, end - at, self.size - at)
            pieces.append(self.deadline.run(self._piece, at, length))
        return b"".join(pieces)

    def _piece(self, start: int, length: int) -> bytes:
        self.inner.seek(start)
        data: bytes = self.inner.read(length)
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
        self.deadline = Deadline(deadline.server, deadline.seconds)

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
        self.deadline = Deadline(deadline.server, deadline.seconds)

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
        ValueError: if nobody knows the scheme.
    """
    if scheme == "webhdfs":
        from controlllm.common.webhdfs import WebHdfsClient

        return WebHdfsClient
    if scheme in ("hdfs", "viewfs"):  # fsspec's own needs a JVM.
        from hdfs_native import fsspec as native

        return cast(
            type[AbstractFileSystem],
            native.HdfsFileSystem if scheme == "hdfs" else native.ViewfsFileSystem,
        )
    return cast(type[AbstractFileSystem], get_filesystem_class(scheme))


def _as_os_error(error: BaseException, server: str) -> BaseException:
    """The error as an OSError that names the server; interrupts stay what they are."""
    if not isinstance(error, Exception):
        return error
    error = _cause_of(error)
    text = str(error) or type(error).__name__
    text = text if server in text else f"{server}: {text}"
    for kind in (FileNotFoundError, PermissionError, FileExistsError, TimeoutError):
        if isinstance(error, kind):
            return kind(text)
    late = type(error).__name__ in ("FSTimeoutError", "ReadTimeout", "ConnectTimeout")
    return TimeoutError(text) if late else OSError(text)


def _cause_of(error: Exception) -> Exception:
    """Fsspec's HTTP client says "not found" whatever went wrong; the cause says what it was."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    refused = getattr(cause, "status", 404) != 404
    broken = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    return cause if refused or broken else error
