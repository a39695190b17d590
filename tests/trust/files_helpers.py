"""Processes that die at every point of what they do, and processes that live apart."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator

__all__ = ["die_everywhere", "in_a_container", "may_contain"]

_CLONE_NEWPID, _CLONE_NEWUSER, _PR_SET_PDEATHSIG = 0x20000000, 0x10000000, 1

# What Python tells of before it does it: each is a point to die at, before one and after another.
_POINTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock", "shutil.rmtree"}


def die_everywhere(work: Callable[[], object]) -> Iterator[int]:
    """Let forked processes do some work, the first killed (SIGKILL) at its first touch of the disk,
    the next at its second, ...; yields after each death, until one of them comes to its end."""
    for point in range(1, 1000):
        child = os.fork()
        if child == 0:
            left = [point]

            def count(event: str, arguments: object, left: list[int] = left) -> None:
                if event in _POINTS:
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return
        yield point


def in_a_container(work: Callable[[], object]) -> int:
    """Fork a process where numbers begin at 1 and the host's name is the same, as in a container.

    Returns:
        The number of the process that waits for it; killing that kills the container. The exit code
        of the work is 0, or 1 after an error.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _namespaces()
        inner = os.fork()
        if not inner:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            work()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
    finally:
        os._exit(abs(code))


def may_contain() -> bool:
    """Whether this user may make namespaces of processes."""
    child = os.fork()
    if not child:
        try:
            _namespaces()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _namespaces() -> None:
    unshare = ctypes.CDLL(None).unshare
    if unshare(_CLONE_NEWPID) and unshare(_CLONE_NEWUSER | _CLONE_NEWPID):
        raise PermissionError
