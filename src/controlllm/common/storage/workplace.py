"""A folder beside a target, in which the target is made whole before it takes its name.

    .checkpoint-40.controlllm.writing-3f2a90c41b7e/
        .controlllm.lock      held while this is at work, with a note of which process works
        checkpoint-40         being written; or the old one, once the new has taken its name
        .controlllm.old       the old one, where two names cannot be swapped at once

Readers pass it over. It is left over once nobody holds the lock: the kernel sees to that, so that
neither process numbers nor host names, which containers share, decide what is removed. What is
written is flushed to the disk, so that its name outlives a power cut.
"""

import ctypes
import errno
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from controlllm.common.storage.held import LOCK, Held, TakenError, hold

__all__ = [
    "clean_leftovers",
    "exchange",
    "final_path",
    "make_folder",
    "swap_in",
    "sync",
    "sync_tree",
    "workplace",
]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # File systems over a network may know no flushing of names; they do it by themselves.
        if error.errno not in _CANNOT or not path.is_dir():
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush everything in a folder, and the folder."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, in such a way that a power cut does not take them back."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync(path.parent)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths swap their names, so that at no moment one of them names nothing.

    Returns:
        False, with nothing changed, where the system or the file system cannot do it.

    Raises:
        OSError: it can, but not with these.
    """
    function = _renameat2()
    if function is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if function(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))


@cache
def _renameat2() -> Any:
    """The system's call, by its C library; None where there is none."""
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = (
            *(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p),
            ctypes.c_uint,
        )
    return function


_NAME = re.compile(r"^\.(?P<target>.+)\.controlllm\.writing-[0-9a-f]{12}$")
_OLD = ".controlllm.old"
_FOREIGN_SECONDS = 24 * 3600


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """Yield the path to write to, and clear everything away whatever happens (OSError)."""
    make_folder(target.parent)
    clean_leftovers(target.parent)
    held = _open(target)
    folder = held.path.parent
    try:
        held.note()
        yield folder / target.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        held.release()


def swap_in(temporary: Path, target: Path) -> None:
    """Give a folder in a workplace its name; an older one of that name comes in its place.

    Raises:
        OSError: it cannot be; the older one then has its name as before.
    """
    if not os.path.lexists(target):
        os.rename(temporary, target)
    elif not exchange(temporary, target):
        _rename_twice(temporary, target)
    sync(target.parent)


def clean_leftovers(folder: str | Path) -> list[Path]:
    """Remove what interrupted writers left in `folder`, and return what was removed.

    A workplace is left over when its lock is free, and the kernel that had it is this one. What
    was written under another kernel (another host on a shared disk, some of which do not share
    locks), or where there are no locks, is left over when it has not changed for a day, or when
    its process is known to be gone. A swap that stopped between two renames is finished.
    """
    found = (
        path for path in Path(folder).glob(".*.controlllm.writing-*") if _NAME.match(path.name)
    )
    return [path for path in found if path.is_dir() and not path.is_symlink() and _clear(path)]


def final_path(path: Path) -> Path:
    """The path as it will be once what is in a workplace has its name."""
    return Path(*(part for part in path.parts if not _NAME.match(part)))


def _open(target: Path) -> Held:
    """Make and hold a new workplace; a cleaner may take one away before it is held."""
    while True:
        folder = target.parent / f".{target.name}.controlllm.writing-{uuid.uuid4().hex[:12]}"
        folder.mkdir()
        with suppress(TakenError, FileNotFoundError):
            return hold(folder / LOCK)


def _rename_twice(temporary: Path, target: Path) -> None:
    """A swap in two steps; who finds it half done finishes it."""
    old = temporary.parent / _OLD
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(old, target)
        raise


def _clear(folder: Path) -> bool:
    """Remove a workplace, unless somebody works there."""
    try:
        held = hold(folder / LOCK)
    except (TakenError, OSError):
        return False  # At work, gone by now, or another user's.
    try:
        if not _is_left_over(folder, held):
            return False
        _finish_swap(folder)
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        held.release()


def _is_left_over(folder: Path, held: Held) -> bool:
    holder = held.before
    if held.is_locked and (holder is None or holder.is_on_this_machine):
        return True
    if holder is not None and holder.is_gone:
        return True
    return time.time() - _last_change(folder) > _FOREIGN_SECONDS


def _last_change(folder: Path) -> float:
    """When something in a folder was last written, in seconds since the epoch."""
    times = [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            times.append(path.lstat().st_mtime)
    return max(times)


def _finish_swap(folder: Path) -> None:
    """After the first of two renames: the new one was whole before it, so it takes the name."""
    match = _NAME.match(folder.name)
    assert match is not None
    old, new, target = folder / _OLD, folder / match["target"], folder.parent / match["target"]
    if not os.path.lexists(old) or os.path.lexists(target):
        return
    os.rename(new if os.path.lexists(new) else old, target)
    sync(target.parent)
