"""Rows of plain values as lines of JSON and back, the same as before; reading them runs no code.

JSON has no bytes, tuples, dates or arrays, so these are objects of one key:
`{"$bytes": "6869"}`, `{"$date": "2024-01-31"}`, `{"$tuple": [1, 2]}`.
"""

import json
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from controlllm.common.errors import DataError

__all__ = ["decode_row", "encode_row"]

_PLAIN = (type(None), bool, int, float, str)

_WRITE: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bytes: ("bytes", bytes.hex),
    tuple: ("tuple", lambda value: [_written(item) for item in value]),
    datetime: ("datetime", datetime.isoformat),
    date: ("date", date.isoformat),
    time: ("time", time.isoformat),
    timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: ("decimal", str),
    UUID: ("uuid", str),
}
"""Type -> its key, and its value as JSON takes it."""

_READ: dict[str, Callable[[Any], Any]] = {
    "bytes": bytes.fromhex,
    "tuple": lambda value: tuple(_read(item) for item in value),
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda value: timedelta(*value),
    "decimal": Decimal,
    "uuid": UUID,
    "dict": lambda value: {_read(key): _read(item) for key, item in value},
    "array": lambda value: np.array(value[1], dtype=np.dtype(value[0])),
    "number": lambda value: np.dtype(value[0]).type(value[1]),
}
"""Key -> what makes the value again."""


def encode_row(row: Any) -> str:
    """A row as one line of JSON.

    Raises:
        DataError: it holds a value that is not plain; says of which type.
    """
    return json.dumps(_written(row))


def decode_row(line: str | bytes) -> Any:
    """The row that `encode_row` wrote.

    Raises:
        ValueError, TypeError or KeyError: it did not write this line.
    """
    return _read(json.loads(line))


def _written(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return [_written(item) for item in value]
    if isinstance(value, dict):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _written(item) for key, item in value.items()}
        return {"$dict": [[_written(key), _written(item)] for key, item in value.items()]}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufU":
        name = "$array" if isinstance(value, np.ndarray) else "$number"
        return {name: [value.dtype.str, value.tolist()]}
    if kind not in _WRITE:
        raise DataError(f"a {kind.__name__} is no plain value (text, number, date, list, ...)")
    name, write = _WRITE[kind]
    return {f"${name}": write(value)}


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (key := next(iter(value))).startswith("$"):
        return _READ[key[1:]](value[key])
    return {key: _read(item) for key, item in value.items()}
