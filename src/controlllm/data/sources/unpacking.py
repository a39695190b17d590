"""How much may be unpacked at once: files from anywhere hold blocks that grow a million times."""

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig

__all__ = ["check_unpacked", "most_unpacked"]

ROWS, TIMES = 8, 20
"""A block may hold so many rows of `max_row_bytes`, or so many times the bytes that are stored:
more is no block of rows that can be used."""


def most_unpacked(stored: int, source: SourceConfig) -> int:
    """Bytes that so many stored ones may become."""
    return max(ROWS * source.max_row_bytes, TIMES * stored)


def check_unpacked(what: str, unpacked: int, stored: int, source: SourceConfig) -> None:
    """Check before it is unpacked that a block becomes no more than it may.

    Args:
        what: the block, for messages.
        unpacked: bytes that it would become.
        stored: bytes that it is.
        source: its `max_row_bytes`.

    Raises:
        DataError: it would.
    """
    if unpacked > most_unpacked(stored, source):
        raise DataError(
            f"{what} would unpack to {unpacked:,} bytes or more out of {stored:,}, which is more "
            f"than {TIMES} times as many and than {ROWS} rows of `max_row_bytes` "
            f"({source.max_row_bytes:,}); raise that if you trust the file."
        )
