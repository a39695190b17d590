"""Which rows of a source take part: a split by hash, wanted values, filters, a sample.

Every decision is made on one row alone, so it is the same in any order, in a stream and on any
rank, and it comes before up-sampling and before a row becomes several examples: no group of rows is
ever on both sides of a split.
"""

import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Any
from uuid import UUID

import numpy as np

from controlllm.common.errors import ControlLLMError, DataError
from controlllm.common.registry import Registry
from controlllm.data.config.columns import failure_of, value_of
from controlllm.data.config.source_config import SourceConfig

__all__ = ["FILTERS", "content_hash", "keeps_row", "register_filter"]

FILTERS: Registry[Callable[[Mapping[str, Any]], bool]] = Registry("filter")
"""Filters by name: row -> whether it takes part."""

register_filter = FILTERS.register


def keeps_row(row: Mapping[str, Any], source: SourceConfig) -> bool:
    """Whether a row takes part in a source.

    Raises:
        MissingColumnError: there is no column that the config names, or that the filter asks for.
        DataError: the filter fails.
    """
    if source.part is not None:
        group = row if source.group_by is None else value_of(row, source.group_by, "group_by")
        is_held_out = _fraction(group, "split") < source.held_out
        if is_held_out != (source.part == "held_out"):
            return False
    if any(value_of(row, column, "where") not in wanted for column, wanted in source.where.items()):
        return False
    if source.filter is not None:
        try:
            if not FILTERS.get(source.filter)(row):
                return False
        except ControlLLMError:
            raise
        # Whatever a user's own function raises means that the row cannot be judged.
        except Exception as error:
            raise failure_of(f"the filter {source.filter!r}", error, row) from error
    if source.sample < 1 and _fraction(row, "sample") >= source.sample:
        return False
    if source.difficulty not in (None, "length") and not source.postprocess:
        value_of(row, str(source.difficulty), "difficulty")  # Told before anything is tokenized.
    return True


def content_hash(value: Any, purpose: str = "") -> int:
    """64 bits of a hash of plain values; equal content gives equal hashes on every machine.

    A column that is null counts as one that is absent: tables hold nulls where lines of JSON hold
    nothing.

    Raises:
        DataError: a value has no content of its own (an open file, say).
    """
    plain = _without_nulls(value)
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, default=_plain)
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=purpose.encode())
    return int.from_bytes(digest.digest(), "big")


def _fraction(value: Any, purpose: str) -> float:
    """A number in [0, 1) from the content; another purpose gives an independent one."""
    return (content_hash(value, purpose) >> 11) / 2**53


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    """What is no JSON, as JSON that tells its content."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, date | datetime | time | timedelta | Decimal | UUID):
        return str(value)
    raise DataError(f"a {type(value).__name__} cannot be hashed, which `part` and `sample` need")
