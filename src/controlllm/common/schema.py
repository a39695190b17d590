"""One check of nested values against types: settings of a run, and JSON that anybody wrote.

A schema is a type: a dataclass, a `TypedDict`, or any of their parts. What does not fit is an error
with the dotted name of the field.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from controlllm.common.errors import ConfigError
from controlllm.common.registry import check_choice
from controlllm.common.secrets import redacted

__all__ = ["build"]

T = TypeVar("T")


def build(cls: type[T], values: Any, where: str = "") -> T:
    """Build the dataclass `cls` from a nested dict.

    Args:
        cls: a dataclass; fields may be scalars, `Literal`, optional, lists, dicts or dataclasses.
        values: nested dict as YAML gives it.
        where: dotted name of this dict in the run file, for error messages.

    Raises:
        ConfigError: for a key that is not known (with the nearest) or a value of the wrong type.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{_said(where or 'the run config', values)} must be a mapping of settings."
        )
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    for key in values:
        check_choice("setting", _join(where, str(key)), [_join(where, name) for name in names])
    arguments = {k: _convert(hints[k], value, _join(where, k)) for k, value in values.items()}
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ConfigError(f"{where or 'the run config'} is incomplete: {error}.") from error


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type hint wants it."""
    if hint is Any:
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(inner, value, where)
    if origin is Literal:
        if value not in inner:
            check_choice(where, value, [str(choice) for choice in inner])
        return value
    if origin in (list, tuple, dict, Mapping) or typing.is_typeddict(hint):
        return _convert_container(origin, inner, value, where)
    return _convert_scalar(hint, value, where)


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
            raise ConfigError(f"{_said(where, value)} must be a list.")
        item = inner[0] if inner else Any
        return origin(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if not isinstance(value, Mapping):
        raise ConfigError(f"{_said(where, value)} must be a mapping.")
    keys, items = inner if inner else (Any, Any)
    return {
        _convert(keys, k, where): _convert(items, v, _join(where, str(k))) for k, v in value.items()
    }


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-3 as a string; an int is a fine float.
            return float(value)
        except (TypeError, ValueError):
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
