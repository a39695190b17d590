"""How much memory a row takes, and how much may be unpacked at once, as heads of blocks say it."""

from typing import Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig

__all__ = ["check_unpacked", "most_unpacked", "read_signed", "read_unsigned", "weight"]

ROWS, TIMES = 8, 20
"""A block may hold so many rows of `max_row_bytes`, or so many times the bytes that are stored:
more is no block of rows that can be used."""


def most_unpacked(stored: int, source: SourceConfig) -> int:
    """Bytes that so many stored ones may become."""
    return max(ROWS * source.max_row_bytes, TIMES * stored)


def check_unpacked(what: str, unpacked: int, stored: int, source: SourceConfig) -> None:
    """Check before it is unpacked that a block becomes no more than it may.

    Raises:
        DataError: it would.
    """
    if unpacked > most_unpacked(stored, source):
        raise DataError(
            f"{what} would unpack to {unpacked:,} bytes or more out of {stored:,}, which is more "
            f"than {TIMES} times as many and than {ROWS} rows of `max_row_bytes` "
            f"({source.max_row_bytes:,}); raise that if you trust the file."
        )


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


def read_unsigned(data: Any) -> int:
    """A number as heads hold it: seven bits in each byte that `data.read` gives, the lowest first.

    Raises:
        IndexError: the data ends within it, or it is too large.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = data.read(1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise IndexError


def read_signed(data: Any) -> int:
    """The same for a number whose lowest bit is its sign."""
    value = read_unsigned(data)
    return (value >> 1) ^ -(value & 1)
