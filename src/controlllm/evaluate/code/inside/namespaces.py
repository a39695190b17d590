"""A network, processes and a root folder of its own, by Linux namespaces.

In them there are no network devices that are up, no processes but those of the program, and no
files but the interpreter's libraries (read only) and one folder in memory, of bounded size. Nobody
needs to be root for that, but many containers refuse it.
"""

import ctypes
import os
from pathlib import Path

from .libc import MACHINE, call, syscall

__all__ = ["BOX", "enter", "new_root"]

BOX = "/box"
"""Where the program's folder lies in a root folder of its own."""

_NEWNS, _NEWUTS, _NEWIPC = 0x00020000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_SPACES = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
_NOBODY = 65534
_NOSUID, _NODEV, _NOEXEC, _BIND = 2, 4, 8, 4096
_REC, _PRIVATE = 16384, 1 << 18
_DETACH, _AT_RECURSIVE, _AT_FDCWD = 2, 0x8000, -100
_RDONLY = 1
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def enter() -> None:
    """Leave the network, processes, mounts and IPC of the machine; children are in the new ones.

    Raises:
        OSError: the kernel, or the container, refuses.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        call("unshare", _NEWUSER | _SPACES)
    except OSError:
        if user != 0:
            raise
        call("unshare", _SPACES)  # root may do so where user namespaces are switched off
        return
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_NOBODY} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{_NOBODY} {group} 1")


def new_root(folder: str, readable: list[str], disk: int) -> None:
    """Make `folder` the root of this mount namespace: libraries, devices without harm, and `BOX`.

    Args:
        folder: an empty folder.
        readable: files and folders to be seen where they are now, read only.
        disk: bytes that may be written to `BOX`, which is in memory.

    Raises:
        OSError: it cannot be done here.
    """
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", folder, "tmpfs", _NOSUID | _NODEV | _NOEXEC, "size=1m,mode=755")
    for path in [*readable, *_DEVICES]:
        _show(path, folder + path)
    box = folder + BOX
    Path(box).mkdir()
    _mount("tmpfs", box, "tmpfs", _NOSUID | _NODEV | _NOEXEC, f"size={disk},mode=700")
    os.chdir(folder)
    syscall(_PIVOT_ROOT[MACHINE], b".", b".")
    call("umount2", b".", _DETACH)  # what was the root before
    os.chdir("/")
    _restrict("/", _RDONLY, recursive=False)


def _show(path: str, target: str) -> None:
    """Bind what lies at `path` to `target`, read only."""
    if Path(path).is_dir():
        Path(target).mkdir(parents=True, exist_ok=True)
    elif Path(path).exists():
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).touch()
    else:
        return
    _mount(os.path.realpath(path), target, None, _BIND | _REC)
    if path not in _DEVICES:
        _restrict(target, _RDONLY | _NOSUID | _NODEV, recursive=True)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    """`mount(2)`."""
    words = [None if one is None else os.fsencode(one) for one in (source, target, kind)]
    call("mount", *words, flags, None if options is None else options.encode())


def _restrict(target: str, attributes: int, recursive: bool) -> None:
    """Add attributes to a mount; those it has stay (`mount_setattr`, Linux 5.12)."""
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    size = ctypes.sizeof(wanted)
    syscall(_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), flags, ctypes.byref(wanted), size)
