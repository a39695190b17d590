"""How much a program may use, and the privileges that it gives up."""

import ctypes
import resource

from .libc import call, prctl

__all__ = ["die_with_parent", "drop_privileges", "limit"]

_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS, _SIGKILL = 1, 4, 38, 9
_CAPABILITIES_3 = 0x20080522
_STACK = 8 << 20


def limit(memory: int, cpu_seconds: int, disk: int, tasks: int | None) -> None:
    """Set the limits of this process and its children.

    Args:
        memory: bytes of address space.
        cpu_seconds: processor time, after which the kernel ends it, and a second later kills it.
        disk: bytes of one file.
        tasks: processes and threads of this user in this namespace; None = as it is.

    Raises:
        OSError, ValueError: one of them cannot be set.
    """
    wanted = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: disk,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: _STACK,
    }
    if tasks is not None:
        wanted[resource.RLIMIT_NPROC] = tasks
    for name, value in wanted.items():
        _, hard = resource.getrlimit(name)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        last = most + 1 if name == resource.RLIMIT_CPU and most < hard % (1 << 63) else most
        resource.setrlimit(name, (most, last))


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that made it is gone."""
    prctl(_PDEATHSIG, _SIGKILL)


def drop_privileges() -> None:
    """Give up all capabilities, and whatever a program with a set-user-ID bit could give.

    Raises:
        OSError: the kernel is older than 3.5.
    """
    prctl(_NO_NEW_PRIVS, 1)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
    prctl(_DUMPABLE, 0)  # nobody but root may look into it from outside
