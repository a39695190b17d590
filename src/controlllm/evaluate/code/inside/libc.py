"""System calls that Python has no function for. Every failure is an `OSError`."""

import ctypes
import os
from typing import Any

__all__ = ["MACHINE", "call", "prctl", "syscall"]

MACHINE = os.uname().machine
"""The kernel's name of this architecture."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def _word(value: Any) -> Any:
    """Integers at full width; ctypes would pass 32 bits."""
    return ctypes.c_long(value) if isinstance(value, int) else value


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library that returns -1 on failure.

    Raises:
        OSError: it failed, or the library has no such function.
    """
    try:
        function = getattr(_LIBC, name)
    except AttributeError:
        raise OSError(38, f"the C library has no {name}") from None
    result = int(function(*map(_word, arguments)))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def syscall(number: int, *arguments: Any) -> int:
    """Make a system call by its number; raises `OSError` as `call` does."""
    return call("syscall", number, *arguments)


def prctl(option: int, *arguments: Any) -> int:
    """Change something about this process; missing arguments are 0."""
    return call("prctl", option, *arguments, *[0] * (4 - len(arguments)))
