"""A column that is not there: told with the columns that are, and with the nearest name."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from controlllm.common.errors import DataError
from controlllm.common.registry import nearest_name

__all__ = ["MissingColumnError", "failure_of", "listed", "missing_column"]

LISTED = 20
"""The most names that a message lists."""


class MissingColumnError(DataError):
    """A row has no such column. Mostly no row of the source has: then a name is misspelt."""


def missing_column(row: Mapping[str, Any], column: str, named: str = "") -> MissingColumnError:
    """The error to raise for a column that is missing.

    Args:
        row: column -> value.
        column: what it lacks.
        named: who asks for it, e.g. "named in `where`".
    """
    asked = f", {named}," if named else ""
    return MissingColumnError(f"column {column!r}{asked} is missing {_beside(row, column)}")


def failure_of(what: str, error: Exception, row: Mapping[str, Any]) -> DataError:
    """The error to raise where a user's own function fails on a row.

    Args:
        what: which function.
        error: what it raised; mostly a `KeyError` names a column that the row has not.
        row: column -> value.
    """
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    if isinstance(key, str) and key not in row:
        return MissingColumnError(f"{what} fails: {error!r} {_beside(row, key)}")
    return DataError(f"{what} fails: {error!r}")


def listed(names: Iterable[str]) -> str:
    """Names for a message, not too many of them."""
    left = iter(names)
    shown = [repr(name) for name in islice(left, LISTED)]
    more = sum(1 for _ in left)
    return (", ".join(shown) or "none") + (f" and {more:,} more" if more else "")


def _beside(row: Mapping[str, Any], column: str) -> str:
    """What the row has instead."""
    near = nearest_name(column, map(str, row))
    hint = "" if near is None else f"; did you mean {near!r}?"
    return f"(the row has {listed(row)}{hint})"
