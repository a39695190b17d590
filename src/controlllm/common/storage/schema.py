"""One check of nested values against types: settings of a run, and JSON that anybody wrote.

A schema is a type: a dataclass, a `TypedDict`, or any of their parts, with bounds where too large a
value would cost time or memory. What does not fit is an error with the field's dotted name.

    class Record(TypedDict, total=False):
        vocab_size: Required[Annotated[int, between(1, 2**24)]]

    read_record("config.json", Record)      # or an error that names config.json and vocab_size
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.registry import check_choice, nearest
from controlllm.common.settings import require_settings
from controlllm.common.storage.files import read_json
from controlllm.common.text.secrets import redacted

__all__ = [
    "OPEN",
    "at_most",
    "between",
    "build",
    "check_record",
    "fitting",
    "matching",
    "read_record",
]

T = TypeVar("T")

OPEN = "may have fields that are not read"
"""Beside a `TypedDict` in `Annotated`: fields that it does not know are handed on as they are."""
_SHOWN = 400
_DEEPEST = 100


@dataclasses.dataclass(frozen=True)
class _Bound:
    """Which values of a type are allowed, and `what` those are; stands beside it in `Annotated`."""

    holds: Callable[[Any], bool]
    what: str


def between(low: float, high: float) -> _Bound:
    """Numbers from `low` to `high`; what is not a number is not among them."""
    return _Bound(lambda value: low <= value <= high, f"from {low} to {high}")


def at_most(length: int) -> _Bound:
    """Texts, lists and mappings of at most so many characters or items."""
    return _Bound(lambda value: len(value) <= length, f"at most {length} long")


def matching(pattern: str, what: str) -> _Bound:
    """Texts that match a pattern as a whole, and what those are called."""
    return _Bound(lambda value: re.fullmatch(pattern, value) is not None, what)


def fitting(holds: Callable[[Any], bool], what: str) -> _Bound:
    """Values for which a function holds, and what those are called."""
    return _Bound(holds, what)


def read_record(path: str | Path, schema: Any) -> Any:
    """Read a JSON file that is as a schema says.

    Raises:
        CheckpointError: if it is missing, no JSON, too large, or a field of it does not fit.
    """
    return check_record(read_json(path), schema, path)


def check_record(values: Any, schema: Any, path: object) -> Any:
    """Check values that were read from a file against a schema; see `read_record`."""
    if _is_deep(values):
        raise CheckpointError(f"{path} nests deeper than {_DEEPEST} levels; it is not read.")
    try:
        return _convert(schema, values, "")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {_short(str(error))}") from error


def build(cls: type[T], values: Any, where: str = "") -> T:
    """Build the dataclass `cls` from a nested dict, which has the dotted name `where`.

    Raises:
        ConfigError: for a key that is not known (with the nearest) or a value of the wrong type.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{_said(where or 'the run config', values)} must be a mapping of settings."
        )
    if not where:
        require_settings(cls, values)
    names = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    arguments = _fields(get_type_hints(cls, include_extras=True), values, where, names)
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ConfigError(f"{where or 'the run config'} is incomplete: {error}.") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type hint wants it."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return _convert_bounded(inner[0], inner[1:], value, where)
    if origin in (Required, NotRequired):
        return _convert(inner[0], value, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if typing.is_typeddict(hint):
        return _convert_record(hint, value, where, is_open=False)
    if origin in (Union, types.UnionType):
        return _convert_union(inner, value, where)
    if origin is Literal:
        if not any(value == one and type(value) is type(one) for one in inner):
            check_choice(where, value, [str(choice) for choice in inner])
            raise ConfigError(
                f"{_said(where, value)} must be one of {', '.join(map(repr, inner))}."
            )
        return value
    if origin in (list, tuple, dict, Mapping):
        return _convert_container(origin, inner, value, where)
    return _convert_scalar(hint, value, where)


def _convert_bounded(hint: Any, notes: tuple[Any, ...], value: Any, where: str) -> Any:
    if OPEN in notes:
        return _convert_record(hint, value, where, is_open=True)
    value = _convert(hint, value, where)
    for bound in notes:
        if isinstance(bound, _Bound) and value is not None and not bound.holds(value):
            raise ConfigError(f"{_said(where, value)} must be {bound.what}.")
    return value


def _convert_record(hint: Any, value: Any, where: str, is_open: bool) -> dict[str, Any]:
    """A `TypedDict`'s fields."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{_said(where or 'the content', value)} must be a mapping of fields.")
    for key in sorted(hint.__required_keys__ - value.keys()):
        raise ConfigError(f"{_join(where, key)} is missing.")
    hints = get_type_hints(hint, include_extras=True)
    known = {key: item for key, item in value.items() if key in hints} if is_open else value
    return (dict(value) if is_open else {}) | _fields(hints, known, where, list(hints))


def _fields(
    hints: dict[str, Any], values: Mapping[str, Any], where: str, names: list[str]
) -> dict[str, Any]:
    for key in values:
        if key not in names:
            known = [_join(where, name) for name in names]
            name = _join(where, str(key))
            raise ConfigError(
                f"{_short(name)} is not known; allowed: {', '.join(sorted(names))}."
                f"{nearest(name, known)}"
            )
    return {key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()}


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in (o for o in options if o is not type(None)):
        try:
            return _convert(option, value, where)
        except ConfigError as error:
            errors.append(error)
    raise errors[-1]


def _convert_container(origin: Any, inner: tuple[Any, ...], value: Any, where: str) -> Any:
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{_said(where, value)} must be a list, in brackets: [...].")
        item = inner[0] if inner else Any
        return origin(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if not isinstance(value, Mapping):
        raise ConfigError(f"{_said(where, value)} must be a mapping.")
    keys, items = inner if inner else (Any, Any)
    return {
        _convert_key(keys, k, where): _convert(items, v, _join(where, str(k)))
        for k, v in value.items()
    }


def _convert_key(hint: Any, key: Any, where: str) -> Any:
    """JSON has no whole numbers as keys: they are texts there."""
    if hint is int and isinstance(key, str) and re.fullmatch(r"-?[0-9]{1,9}", key):
        return int(key)
    return _convert(hint, key, where)


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-3 as a string; an int is a fine float.
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    elif type(value) is hint or (hint is str and isinstance(value, str)):
        return value
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif hint not in (int, bool, str, float):
        return value
    raise ConfigError(f"{_said(where, value)} must be {_ARTICLES[hint]}.")


def _said(where: str, value: Any) -> str:
    """A setting and its value, as messages may show them: short, and without secrets."""
    text = repr(redacted(value, where.rsplit(".", 1)[-1]))
    return f"{where}={text if len(text) <= 100 else f'{text[:100]}...'}"


_ARTICLES = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}


def _is_deep(values: Any) -> bool:
    """Whether lists and mappings stand in one another so often that reading them would not end."""
    level = [values]
    for _ in range(_DEEPEST):
        level = [
            item
            for one in level
            if isinstance(one, Mapping | list | tuple)
            for item in (one.values() if isinstance(one, Mapping) else one)
        ]
    return bool(level)


def _short(message: str) -> str:
    """A message without the middle of what somebody wrote at length."""
    if len(message) <= _SHOWN:
        return message
    return f"{message[: _SHOWN // 2]} ... {message[-_SHOWN // 2 :]}"
