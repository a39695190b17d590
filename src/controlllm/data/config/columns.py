"""`columns` of a source: the format's column is one of the row's, or several joined by a template.

```
prompt: question               the row's column
prompt: "{Body} {Question}"    several in one text: names in braces and nothing else
```
A column that is missing is an error with the columns that are there and the nearest name.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from string import Formatter
from typing import Any

from controlllm.common.errors import ConfigError, DataError
from controlllm.common.registry import nearest_name

__all__ = [
    "MissingColumnError",
    "column_told",
    "failure_of",
    "kind_of",
    "listed",
    "map_row",
    "not_text",
    "template_parts",
    "value_of",
]

LISTED = 20
"""The most names that a message lists."""


class MissingColumnError(DataError):
    """A row has no such column. Mostly no row of the source has: then a name is misspelt."""


def failure_of(what: str, error: Exception, row: Mapping[str, Any]) -> DataError:
    """The error to raise where a user's own function fails on a row."""
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


class _Mapped(dict[str, Any]):
    """A row as a format sees it, which knows what the user calls each column."""

    names: Mapping[str, str]


def map_row(
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    numbers_as_text: bool = False,
    reads: Collection[str] | None = None,
) -> Mapping[str, Any]:
    """The row with the format's columns.

    Raises:
        DataError: a column is missing, or one that is to be joined holds no text.
    """
    if numbers_as_text:
        named = {*(reads if reads is not None else row), *columns.values()}
        named |= {
            name for template in columns.values() for _, name in template_parts(template) if name
        }
        row = {key: _written(value) if key in named else value for key, value in row.items()}
    if not columns:
        return row
    mapped = _Mapped(row)
    mapped.update({target: _value(row, source) for target, source in columns.items()})
    mapped.names = columns
    return mapped


def column_told(row: Mapping[str, Any], column: str) -> str:
    """How messages call a column: by the user's name for it."""
    own = row.names.get(column, column) if isinstance(row, _Mapped) else column
    return f"column {own!r}"


def kind_of(value: Any) -> str:
    """The type of a value with its article, for messages."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "null"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def not_text(value: Any) -> str:
    """What a value is where a text is expected, for messages."""
    hint = " (`numbers_as_text: true` reads it as one)" if _written(value) is not value else ""
    return f"{kind_of(value)}, not text{hint}"


def value_of(row: Mapping[str, Any], column: str, field: str | None = None) -> Any:
    """What is in a column, which a field of the source may have named.

    Raises:
        MissingColumnError: there is none of this name.
    """
    if column not in row:
        named = f", named in `{field}`," if field else ""
        raise MissingColumnError(f"column {column!r}{named} is missing {_beside(row, column)}")
    return row[column]


def _value(row: Mapping[str, Any], source: str) -> Any:
    """What stands in the user's column, or in several."""
    if source in row:
        return row[source]
    parts = template_parts(source)
    if all(name is None for _, name in parts):
        return value_of(row, source, "columns")
    joined = ""
    for text, name in parts:
        value = "" if name is None else value_of(row, name, "columns")
        if not isinstance(value, str):
            raise DataError(f"column {name!r} holds {not_text(value)}")
        joined += text + value
    return joined


@lru_cache(256)
def template_parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """(text, the column behind it) of a template; a plain name is one text.

    Raises:
        ConfigError: it holds more than names in its braces.
    """
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"columns: {template!r} is no template ({error}).") from error
    for _, name, spec, conversion in parsed:
        if name is not None and (not name or spec or conversion):
            raise ConfigError(
                f"columns: {template!r} may hold plain names of columns in its braces, nothing "
                "else, as in '{Body} {Question}'."
            )
    return tuple((text, name) for text, name, _, _ in parsed)


def _written(value: Any) -> Any:
    """A number as it is written; anything else, NaN (no value in tables) included, as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or value != value:
        return value
    return str(value)
