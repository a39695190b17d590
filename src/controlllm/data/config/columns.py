"""`columns` of a source: the format's column is one of the row's, or several joined by a template.

```
prompt: question               the row's column
prompt: "{Body} {Question}"    several in one text: names in braces and nothing else
```
"""

import math
from collections.abc import Collection, Mapping
from decimal import Decimal
from functools import lru_cache
from string import Formatter
from typing import Any

from controlllm.common.errors import ConfigError, DataError
from controlllm.data.config.column_errors import missing_column

__all__ = ["check_mapping", "column_told", "kind_of", "map_row"]


class _Mapped(dict[str, Any]):
    """A row as a format sees it, which knows what the user calls each column."""

    names: Mapping[str, str]


def check_mapping(columns: Mapping[str, str]) -> None:
    """Check that every template holds column names in braces and nothing else there.

    Raises:
        ConfigError: with the template.
    """
    for template in columns.values():
        _parts(template)


def map_row(
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    numbers_as_text: bool = False,
    reads: Collection[str] | None = None,
) -> Mapping[str, Any]:
    """The row with the format's columns.

    Args:
        row: column -> value.
        columns: the format's column -> the row's column, or a template of several.
        numbers_as_text: write numbers out, in the columns that the format reads.
        reads: those columns; None: all.

    Raises:
        DataError: a column is missing, or one that is to be joined holds no text.
    """
    if numbers_as_text:
        named = {*(reads if reads is not None else row), *columns.values()}
        named |= {name for template in columns.values() for _, name in _parts(template) if name}
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
    hint = " (`numbers_as_text: true` reads it as one)" if _written(value) is not value else ""
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}, not text{hint}"


def _value(row: Mapping[str, Any], source: str) -> Any:
    """What stands in the user's column, or in several."""
    if source in row:
        return row[source]
    parts = _parts(source)
    if all(name is None for _, name in parts):
        raise missing_column(row, source, "named in `columns`")
    return "".join(text + ("" if name is None else _joined(row, name)) for text, name in parts)


def _joined(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise missing_column(row, name, "named in `columns`")
    if not isinstance(row[name], str):
        raise DataError(f"column {name!r} holds {kind_of(row[name])}")
    text: str = row[name]
    return text


@lru_cache(256)
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
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
