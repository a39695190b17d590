"""Tries to get through each wall, as a program under test might, and says what it got through.

The parent makes what is to be reached (a file, sockets that listen) outside the walls.
"""

import ctypes
import mmap
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .libc import call

__all__ = ["tries"]

_NEWUSER, _SEIZE = 0x10000000, 0x4206
_CAPABILITIES_3 = 0x20080522


def tries(probe: dict[str, Any], box: str) -> dict[str, str | None]:
    """Try everything.

    Args:
        probe: `secret` (a file outside), `folder` (one that anybody may write), `tcp` and `udp`
            (ports), `unix` (a socket's path), `abstract` (a socket's name), `parent` (a process),
            `memory` and `disk` (bytes).
        box: the folder that may be written.

    Returns:
        By wall, what got through; None = nothing.
    """
    walls: dict[str, Callable[[dict[str, Any], str], Iterator[str]]] = {
        "reading files": _reading,
        "writing files": _writing,
        "network": _network,
        "other processes": _others,
        "new processes": _new,
        "memory": _memory,
        "disk": _disk,
        "privileges": _privileges,
    }
    return {wall: "; ".join(through(probe, box)) or None for wall, through in walls.items()}


def _works(action: Callable[..., Any], *arguments: Any) -> bool:
    """Whether an action succeeds."""
    try:
        action(*arguments)
    except (OSError, MemoryError, ValueError, subprocess.SubprocessError):
        return False
    return True


def _reading(probe: dict[str, Any], _: str) -> Iterator[str]:
    for path in (probe["secret"], "/etc/passwd", "/proc/self/environ", "/proc/1/cmdline"):
        if _works(Path(path).read_bytes):
            yield f"read {path}"
    if _works(os.listdir, probe["folder"]):
        yield f"listed {probe['folder']}"


def _writing(probe: dict[str, Any], _: str) -> Iterator[str]:
    target = Path(probe["folder"]) / "written"
    if _works(target.write_text, "through"):
        yield f"wrote {target}"
    for path in (probe["secret"], "/etc/passwd", os.__file__):
        if _works(_open_to_write, path):
            yield f"opened {path} for writing"
    if _works(os.truncate, probe["secret"], 0):
        yield f"emptied {probe['secret']}"
    if _works(os.remove, probe["secret"]):
        yield f"removed {probe['secret']}"
    if _works(os.chmod, probe["folder"], 0o777):
        yield f"changed the mode of {probe['folder']}"


def _open_to_write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND))


def _network(probe: dict[str, Any], _: str) -> Iterator[str]:
    places: list[tuple[str, int, int, Any]] = [
        ("a TCP port", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", probe["tcp"])),
        ("a UDP port", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", probe["udp"])),
        ("a unix socket", socket.AF_UNIX, socket.SOCK_STREAM, probe["unix"]),
        ("an abstract socket", socket.AF_UNIX, socket.SOCK_STREAM, "\0" + probe["abstract"]),
    ]
    for what, family, kind, address in places:
        if _works(_reach, family, kind, address):
            yield f"reached {what} of this machine"


def _reach(family: int, kind: int, address: Any) -> None:
    with socket.socket(family, kind) as one:
        one.settimeout(2)
        one.connect(address)
        one.send(b"through")


def _others(probe: dict[str, Any], _: str) -> Iterator[str]:
    for process in {probe["parent"], os.getppid()} - {0, 1}:  # 1 has its namespace for itself
        if _works(os.kill, process, 0):
            yield f"may signal process {process}"
        if _works(call, "ptrace", _SEIZE, process, 0, 0):
            yield f"may trace process {process}"


def _new(probe: dict[str, Any], _: str) -> Iterator[str]:
    if _works(lambda: os.fork() or os._exit(0)):
        yield "made a process"
    for path in (sys.executable, "/bin/true", "/usr/bin/true"):
        if _works(os.posix_spawn, path, [path, "--version"], {}):
            yield f"started {path}"
    if _works(os.setsid):
        yield "left its session"


def _memory(probe: dict[str, Any], _: str) -> Iterator[str]:
    if _works(bytearray, 2 * probe["memory"]):
        yield "more than its memory"
    if _works(mmap.mmap, -1, 2 * probe["memory"]):
        yield "more than its memory, by mmap"
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if _works(resource.setrlimit, resource.RLIMIT_AS, (hard, 4 * hard)):
        yield "raised its limit"


def _disk(probe: dict[str, Any], box: str) -> Iterator[str]:
    target = Path(box) / "large"

    def write() -> None:
        with target.open("wb", buffering=0) as file:
            file.truncate(2 * probe["disk"])

    if _works(write):
        yield "a file that is larger than allowed"
    target.unlink(missing_ok=True)


def _privileges(_: dict[str, Any], __: str) -> Iterator[str]:
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    call("capget", ctypes.byref(header), ctypes.byref(sets))
    if any(sets):
        yield "has capabilities"
    if _works(call, "unshare", _NEWUSER):
        yield "made a user namespace"
    if _works(call, "mount", b"none", b"/", None, 1 << 18, None):
        yield "may mount"
