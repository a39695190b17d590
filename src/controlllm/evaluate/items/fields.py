"""Values of a JSON file as a dataclass: whoever wrote it, they have the types of its fields."""

import math
from collections.abc import Callable, Iterable
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from controlllm.common.errors import DataError

__all__ = ["made"]

MOST_INTEGER = 2**63
"""No count or number of a document is as large."""

T = TypeVar("T")
_hints_of: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def made(cls: type[T], values: Any, where: str) -> T:
    """A dataclass of what a file says, every value of the declared type.

    Raises:
        DataError: there is another field, one lacks, or a value is not what it must be.
    """
    if not isinstance(values, dict):
        raise DataError(f"{where} is no JSON object.")
    hints = _hints_of(cls)
    if unknown := sorted(values.keys() - hints.keys()):
        raise DataError(f"{where} has fields that are not known: {unknown}.")
    made = {
        name: tuple(value) if isinstance(value, list) and _is_tuple(hints[name]) else value
        for name, value in values.items()
    }
    for name, value in made.items():
        if not _fits(value, hints[name]):
            raise DataError(f"{where}: {name}={str(value)[:80]!r} has a wrong type.")
        if isinstance(value, int) and abs(value) >= MOST_INTEGER:
            raise DataError(f"{where}: {name} is an integer of {len(str(value))} digits.")
        if isinstance(value, float) and not math.isfinite(value):
            raise DataError(f"{where}: {name}={value} is no finite number.")
    try:
        return cls(**made)
    except TypeError as error:
        raise DataError(f"{where} lacks a field: {error}.") from error


def _is_tuple(hint: Any) -> bool:
    return get_origin(hint) is tuple


def _fits(value: Any, hint: Any) -> bool:
    kinds: Iterable[Any] = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for kind in kinds:
        plain = get_origin(kind) or kind
        if plain is float and isinstance(value, int | float) and not isinstance(value, bool):
            return True
        if plain is int and isinstance(value, bool):
            continue
        if isinstance(value, plain) and (
            plain is not tuple or all(isinstance(one, get_args(kind)[0]) for one in _plain(value))
        ):
            return True
    return False


def _plain(value: Any) -> Iterable[Any]:
    return value if not any(isinstance(one, dict) for one in value) else ()
