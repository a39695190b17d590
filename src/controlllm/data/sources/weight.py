"""About how much memory a row takes."""

from typing import Any

__all__ = ["weight"]

_OTHER = 8
_ERROR = 512


def weight(row: Any) -> int:
    """Bytes of all texts of a row, characters counted as one, and a little for everything else."""
    total = 0
    stack = [row]
    while stack:
        value = stack.pop()
        if isinstance(value, str | bytes):
            total += len(value)
        elif isinstance(value, dict):
            stack += value.keys()
            stack += value.values()
        elif isinstance(value, list | tuple):
            stack += value
        total += _ERROR if isinstance(value, Exception) else _OTHER
    return total
