"""One process at a time: one makes what the others wait for, one writes into a folder."""

import logging
import os
import socket
import stat
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from controlllm.common.errors import ConfigError, ControlLLMError, DataError
from controlllm.common.storage.files import write_text
from controlllm.common.storage.held import LOCK, Held, TakenError, hold
from controlllm.common.storage.workplace import make_folder

__all__ = ["alone", "cache_root", "make_once", "occupied", "own_folder", "read_note", "write_note"]

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NOTE_BYTES = 2**16


def cache_root() -> str:
    """`$CONTROLLLM_CACHE`, or `~/.cache/controlllm`; `~` is not expanded yet."""
    return os.environ.get("CONTROLLLM_CACHE") or "~/.cache/controlllm"


def own_folder(path: Path, option: str) -> Path:
    """Make a folder that this user alone may use, or check that an existing one is this user's.

    Raises:
        ConfigError: it belongs to another user, or others may write to it.
        OSError: it cannot be made.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not hasattr(os, "geteuid"):
        return path  # Windows: folders in a user's profile are that user's.
    # A link counts as its owner's word: one of this user's may lead to another disk. What the
    # administrator made (in an image, say) could not be kept from this process anyway.
    for found in (path.lstat(), path.stat()):
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(
                f"{path} belongs to another user (id {found.st_uid}, this process runs as "
                f"{os.geteuid()}), who could have put anything there; choose another folder with "
                f"`{option}`, or make it yours with `chown`."
            )
    if path.stat().st_mode & _OTHERS:
        raise ConfigError(
            f"other users may write to {path}; run `chmod go-w {path}` if nobody did, or choose "
            f"another folder with `{option}`."
        )
    return path


def write_note(path: Path, text: str) -> None:
    """Write a small text file in place, for this user's eyes, unless its name is a link.

    Raises:
        OSError: it is a link, or cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NOFOLLOW
    with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def read_note(path: Path) -> str:
    """A small text file; empty where there is none, or only a link."""
    try:
        with open(os.open(path, os.O_RDONLY | _NOFOLLOW), encoding="utf-8", errors="replace") as f:
            return f.read(_NOTE_BYTES)
    except OSError:
        return ""


log = logging.getLogger(__name__)


def make_once(
    target: Path, is_whole: Callable[[], bool], make: Callable[[], None], timeout: float
) -> None:
    """Make `target`, unless another process has made it, or makes it now.

    Where another process fails while this one waits, this one fails with the same words instead of
    trying what cannot work.

    Args:
        target: file or folder to be made; beside it lie `.lock`, while it is made `.holder` (who
            makes it), and after a failure `.failed` (its words).
        is_whole: whether it is there, complete.
        make: makes it, atomically.
        timeout: seconds to wait for another process.

    Raises:
        DataError: the wait took longer than `timeout`, the other process failed, or locks cannot be
            used at this place.
    """
    if is_whole():
        return
    failure = _beside(target, "failed")
    known_failure = read_note(failure)
    with alone(target, DataError, "data.cache_dir", timeout):
        if is_whole():
            return
        if (found := read_note(failure)) not in ("", known_failure):
            raise DataError(found.partition("\n")[2])
        try:
            make()
        except ControlLLMError as error:
            # On a full disk the others are not told; then each of them finds out by itself.
            with suppress(ControlLLMError):
                write_text(failure, f"{uuid.uuid4()}\n{error}")
            raise
        with suppress(OSError):
            failure.unlink(missing_ok=True)


@contextmanager
def alone(
    target: Path, kind: type[ControlLLMError], setting: str, timeout: float = -1
) -> Iterator[None]:
    """Hold the lock beside `target`, with a note of who does; the kernel frees it after a kill.

    Raises:
        ControlLLMError: of that kind; it took longer than `timeout` seconds (-1 = no limit), or the
            place that `setting` names knows no locks.
    """
    lock_file, holder = _beside(target, "lock"), _beside(target, "holder")
    lock = FileLock(lock_file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:  # Said before the wait, which may be long.
            by = read_note(holder) or "another process"
            limit = f"up to {timeout:g} s " if timeout >= 0 else ""
            log.info("Waiting %sfor %s, which makes %s", limit, by, target)
            lock.acquire(timeout=timeout)
    except Timeout:
        raise kind(
            f"waited {timeout:g} s for another process ({read_note(holder) or 'unknown'}) that "
            f"prepares {target}. Give it more time (`data.cache_timeout`), or, if no process "
            f"works on it, remove {lock_file}."
        ) from None
    except (OSError, NotImplementedError) as error:
        raise kind(
            f"{target} cannot be prepared: {lock_file} cannot be locked ({error}); choose another "
            f"`{setting}`, on a disk that you may write to and that supports file locks."
        ) from error
    try:
        # A note for people only: a full disk must not stop what might still fit.
        with suppress(OSError):
            write_note(holder, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f"{target.name}.{ending}")


@contextmanager
def occupied(folder: Path, setting: str) -> Iterator[None]:
    """Keep other writers out of a folder, which is made if need be; readers are not kept out.

    Raises:
        ConfigError: another process is at work there (which one is said), or the folder is a file
            or cannot be written.
    """
    held = _enter(folder, f"{setting}={str(folder)!r}")
    try:
        yield
    finally:
        held.release(remove=True)


def _enter(folder: Path, named: str) -> Held:
    if folder.is_file():
        raise ConfigError(f"{named} is a file; choose a folder.")
    try:
        make_folder(folder)
        held = hold(folder / LOCK, note=True)
    except TakenError as error:
        raise ConfigError(
            f"{named} is in use by {error.holder or 'another process'}; wait until it has ended, "
            "end it, or choose another folder."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{named} cannot be written: {error.strerror or error}. Choose another folder, or make "
            "room there."
        ) from error
    if not held.is_locked:
        warnings.warn(
            f"{named} lies on a disk that does not support file locks: make sure that no second "
            "run writes to it.",
            stacklevel=4,
        )
    elif held.before is not None and not held.before.is_on_this_machine:
        warnings.warn(
            f"{named} was last used by {held.before}, which was killed. Some shared "
            "disks do not share locks between machines: make sure that this process has ended.",
            stacklevel=4,
        )
    return held
