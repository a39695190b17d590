"""Which files a process may reach: Landlock, Linux 5.13 and later, for everybody, in containers.

What it knows grew with the kernel (the number is the version of its interface): files (1), renames
(2), truncation (3), TCP ports (4), devices (5), signals and abstract sockets (6). The newest that
is there is used.
"""

import ctypes
import os
from pathlib import Path

from .libc import syscall

__all__ = ["restrict", "version"]

_CREATE, _ADD, _ENTER = 444, 445, 446
_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
_KNOWN_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights to files by version: one bit each; the first one is to start programs."""
_MAKE_DIRECTORY, _MAKE_FILE, _MAKE_SYMLINK = 1 << 7, 1 << 8, 1 << 12
_REMOVE, _REFER = (1 << 4) | (1 << 5), 1 << 13
_OWN_FOLDER = (
    _WRITE_FILE | _READ_FILE | _READ_DIR | _TRUNCATE | _REMOVE | _REFER
    | _MAKE_DIRECTORY | _MAKE_FILE | _MAKE_SYMLINK
)  # fmt: skip
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE
_TCP, _SCOPES = 0b11, 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """The version of Landlock's interface here.

    Raises:
        OSError: this kernel has none, or it is switched off.
    """
    return syscall(_CREATE, None, 0, 1)


def restrict(readable: list[str], folder: str) -> int:
    """From now on: read `readable`, read and write in `folder`, start nothing, reach no TCP port.

    Needs `no_new_privs`. Threads and processes made later are restricted as well.

    Returns:
        The version that was used.

    Raises:
        OSError: it is not there.
    """
    known = version()
    files = _KNOWN_FILES[max(v for v in _KNOWN_FILES if v <= known)]
    ruleset = _Ruleset(files, _TCP if known >= 4 else 0, _SCOPES if known >= 6 else 0)
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    rules = syscall(_CREATE, ctypes.byref(ruleset), size, 0)
    try:
        for path in readable:
            _allow(rules, path, (_READ_FILE | _READ_DIR) & files)
        for path in ("/dev/zero", "/dev/urandom", "/dev/random"):
            _allow(rules, path, _READ_FILE)
        _allow(rules, "/dev/null", (_READ_FILE | _WRITE_FILE) & files)
        _allow(rules, folder, _OWN_FOLDER & files)
        syscall(_ENTER, rules, 0)
    finally:
        os.close(rules)
    return known


def _allow(rules: int, path: str, access: int) -> None:
    """Allow `access` to a path and what is below it, where the path exists."""
    if not Path(path).exists():
        return
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = access if Path(path).is_dir() else access & _OF_FILES
        rule = _Beneath(allowed, parent)
        syscall(_ADD, rules, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)
