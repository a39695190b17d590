"""Who holds a file or a folder: the kernel frees it when that process ends, however it ends.

Processes that were forked meanwhile (workers of data loaders) do not hold on to them: a killed run
is free at once. Where the file system knows no locks, that is told by `is_locked`.
"""

import errno
import json
import os
import socket
import sys
import weakref
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from itertools import takewhile
from pathlib import Path

__all__ = ["LOCK", "Held", "Holder", "TakenError", "hold"]


@dataclass(frozen=True)
class Holder:
    """Identifies a process among all that may share a disk.

    Attributes:
        host: name of its machine or container; several may share one.
        boot: the running kernel, which no two machines share; the host's name where none tells it.
        namespace: in which its number is its own (containers have such namespaces).
        pid: its number there.
        since: when it took what it holds.
        command: how it was started, up to its first option (options may hold secrets).
    """

    host: str
    boot: str
    namespace: str
    pid: int
    since: str
    command: str

    @classmethod
    def this(cls) -> "Holder":
        """This process, now."""
        name = Path(sys.argv[0]).name
        words = ["controlllm" if name == "__main__.py" else name, *sys.argv[1:]]
        if words[1:2] == ["--config"]:
            del words[1]
        return cls(
            host=socket.gethostname(),
            boot=_boot(),
            namespace=_namespace(),
            pid=os.getpid(),
            since=datetime.now().astimezone().isoformat(" ", "seconds"),
            command=" ".join(takewhile(lambda word: not word.startswith("-"), words)),
        )

    @classmethod
    def parse(cls, text: str) -> "Holder | None":
        """What `to_text` wrote; None for anything else."""
        try:
            values = json.loads(text)
            holder = cls(**values)
        except (TypeError, ValueError):
            return None
        sound = all(isinstance(getattr(holder, f.name), f.type) for f in fields(cls))  # type: ignore[arg-type]
        return holder if sound else None

    def to_text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @property
    def is_on_this_machine(self) -> bool:
        """Whether it runs, or ran, under the kernel of this process: they share its locks."""
        return self.boot == _boot()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended; never of a process whose number means nothing here."""
        if not self.is_on_this_machine or self.namespace != _namespace():
            return False
        try:
            os.kill(self.pid, 0)
        except OSError as error:
            return isinstance(error, ProcessLookupError)
        return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} (`{self.command}`)"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    except OSError:
        return socket.gethostname()


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


if sys.platform != "win32":
    import fcntl


LOCK = ".controlllm.lock"
"""The name of such a file in a folder that is written."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_BYTES_OF_A_NOTE = 2**16


class TakenError(Exception):
    """Another process, or another part of this one, holds the file."""

    def __init__(self, path: Path, holder: Holder | None) -> None:
        super().__init__(f"{path} is held by {holder or 'another process'}")
        self.holder = holder


class Held:
    """A file that is held until `release`, or until this process is gone.

    Attributes:
        path: the file.
        is_locked: false where the file system knows no locks, and nobody else is kept out.
        before: who held it last without giving it back, if anybody; read as it was taken.
    """

    def __init__(self, path: Path, handle: int, is_locked: bool) -> None:
        self.path = path
        self.is_locked = is_locked
        self.before = _read(handle)
        self._handle: int | None = handle
        _all_held.add(self)

    def note(self) -> None:
        """Write down that this process holds it; on a full disk an OSError, and it is free."""
        assert self._handle is not None
        try:
            os.ftruncate(self._handle, 0)
            os.lseek(self._handle, 0, os.SEEK_SET)
            os.write(self._handle, Holder.this().to_text().encode())
        except OSError:
            self.release(remove=True)
            raise

    def release(self, remove: bool = False) -> None:
        """Give it back; with `remove` the file goes, too, and the next holder finds no note."""
        if remove and self._handle is not None:
            self.path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Close the file; the lock goes with the last process that has it open."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


_all_held: "weakref.WeakSet[Held]" = weakref.WeakSet()


def hold(path: Path, note: bool = False) -> Held:
    """Take a file, made if need be, without waiting; with `note` it says who holds it.

    Raises:
        TakenError: somebody holds it.
        OSError: it can be neither opened nor made.
    """
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        handle = os.open(path, flags, 0o666)
        try:
            is_locked = _lock(path, handle)
            if not is_locked or _is_at(path, handle):
                held = Held(path, handle, is_locked)
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # Its holder removed it between opening and locking.
    if note:
        held.note()
    return held


def _lock(path: Path, handle: int) -> bool:
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TakenError(path, _read(handle)) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _read(handle: int) -> Holder | None:
    os.lseek(handle, 0, os.SEEK_SET)
    return Holder.parse(os.read(handle, _BYTES_OF_A_NOTE).decode("utf-8", "replace"))


def _let_go_in_child() -> None:
    for held in list(_all_held):
        held.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
