"""What a format is, how one is chosen for a row, and helpers to read columns."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

from controlllm.common.errors import ControlLLMError, DataError
from controlllm.common.registry import Registry

__all__ = [
    "FORMATS",
    "Document",
    "Format",
    "Message",
    "Row",
    "message_content",
    "read_list",
    "read_messages",
    "read_text",
    "read_turns",
    "register_format",
    "to_document",
    "turn",
]

Row: TypeAlias = Mapping[str, Any]
Message: TypeAlias = dict[str, Any]
Document: TypeAlias = str | list[Message]
Convert: TypeAlias = Callable[[Row], Document | None]
ConvertT = TypeVar("ConvertT", bound=Convert)


@dataclass(frozen=True)
class Format:
    """A shape of rows and the function that reads it."""

    columns: tuple[str, ...]
    """The columns by which it is recognised; none: it is only used where it is named."""

    convert: Convert
    """Row -> a text, a conversation, or None to leave the row out on purpose; raises `DataError`
    saying which column is wrong and how."""


FORMATS: Registry[Format] = Registry("format")
"""Known formats; the first registered one whose columns a row has is taken."""

_recognisable: list[str] = []


def register_format(name: str, *columns: str) -> Callable[[ConvertT], ConvertT]:
    """Decorate a function `row -> document` to read rows as format `name`.

    Args:
        name: what `format` of a source says.
        columns: rows that have all of these are of this format by themselves. Without any, the
            format is used only where a source names it: right for one data set's own shape.
    """

    def keep(convert: ConvertT) -> ConvertT:
        FORMATS.register(name)(Format(columns, convert))
        if columns:
            _recognisable.append(name)
        return convert

    return keep


def to_document(
    row: Row, format: str | None = None, columns: Mapping[str, str] | None = None
) -> Document | None:
    """Read one row.

    Args:
        row: column -> value.
        format: name of the format, None to recognise it.
        columns: the format's column -> the row's column.

    Returns:
        A text or a list of messages; None where the format leaves the row out on purpose.

    Raises:
        DataError: a column is missing, null, empty or of a wrong type, or no format fits; says
            which.
    """
    mapped = _rename(row, columns) if columns else row
    if format is None:
        format = _recognise(tuple(mapped), tuple(columns or ()), len(_recognisable))
    known = FORMATS.get(format)
    for column in known.columns:
        _value(mapped, column)
    try:
        return known.convert(mapped)
    except ControlLLMError:
        raise
    # Whatever a user's own function raises means that the row cannot be read.
    except Exception as error:
        raise DataError(f"the format {format!r} fails: {error!r}") from error


def _rename(row: Row, columns: Mapping[str, str]) -> Row:
    missing = [source for source in columns.values() if source not in row]
    if missing:
        raise DataError(
            f"column {missing[0]!r}, named in `columns`, is missing (the row has {_listed(row)})"
        )
    return {**row, **{target: row[source] for target, source in columns.items()}}


@lru_cache(256)
def _recognise(row: tuple[str, ...], mapped: tuple[str, ...], known_formats: int) -> str:
    """The format that a row's columns fit; what the user mapped decides before the rest.

    Rows of a source have the same columns, so it is remembered, until another format is known.
    """
    for present in (set(mapped), set(row)):
        for name in _recognisable:
            if present.issuperset(FORMATS.get(name).columns):
                return name
    raise DataError(
        f"no format fits the columns {_listed(row)}; known: "
        + "; ".join(f"{name} ({', '.join(FORMATS.get(name).columns)})" for name in _recognisable)
        + ". Map yours with `columns`, e.g. {prompt: question, completion: answer}, or name the "
        "data set's own `format`"
    )


def _listed(row: Iterable[str]) -> str:
    return ", ".join(map(repr, row)) or "none"


def _value(row: Row, column: str) -> Any:
    if column not in row:
        raise DataError(
            f"column {column!r} is missing (the row has {_listed(row)}); map it with `columns`"
        )
    return row[column]


def read_text(row: Row, column: str, optional: bool = False) -> str:
    """The text in a column; numbers become text, lists of texts are joined by newlines.

    Args:
        row: column -> value.
        column: whose text.
        optional: whether it may be missing, null or empty, which reads as "".

    Raises:
        DataError: it is missing, null, empty, only white space or of another type.
    """
    value = row.get(column) if optional else _value(row, column)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if all(isinstance(part, str) for part in value):
            value = "\n".join(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        # Tables write "no value" as NaN.
        value = None if math.isnan(value) else str(value)
    if value is None or value == "":
        if optional:
            return ""
        raise DataError(f"column {column!r} is {'null' if value is None else 'empty'}")
    if not isinstance(value, str):
        raise DataError(f"column {column!r} is a {type(value).__name__}, not text")
    if not optional and not value.strip():
        raise DataError(f"column {column!r} holds only white space")
    return value


def read_list(row: Row, column: str) -> list[Any]:
    """The list in a column, also when it is written as JSON text (as CSV files must).

    Raises:
        DataError: it is missing, no list, or empty.
    """
    value = _value(row, column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"column {column!r} is not valid JSON: {error}") from None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(f"column {column!r} is a {type(value).__name__}, not a list")
    if not value:
        raise DataError(f"column {column!r} is an empty list")
    return list(value)


def read_messages(row: Row, column: str) -> list[Message]:
    """The messages `{"role": ..., "content": ...}` in a column; other keys (tool calls) are kept.

    Raises:
        DataError: it is no list of messages; says which message is wrong.
    """
    conversation: list[Message] = []
    for i, message in enumerate(read_list(row, column)):
        where = f"column {column!r}, message {i}"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"{where}: {message!r} is not a mapping with 'role' and 'content'")
        extra = {key: value for key, value in message.items() if value is not None}
        content = message_content(message, "content", where)
        conversation.append({**extra, "role": message["role"], "content": content})
    return conversation


def read_turns(row: Row, column: str, role: str) -> list[Message]:
    """The messages in a column, or its text as one message of `role`.

    Raises:
        DataError: as `read_messages` and `read_text` do.
    """
    value = _value(row, column)
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if is_list and any(isinstance(part, Mapping) for part in value):
        return read_messages(row, column)
    return [{"role": role, "content": read_text(row, column)}]


def message_content(message: Mapping[str, Any], key: str, where: str) -> str:
    """The text of a message: a text, or a list of `{"type": "text", "text": ...}` parts.

    Args:
        message: one message or turn.
        key: where its text is kept.
        where: how errors call its place.

    Raises:
        DataError: it is no text; only a message with tool calls may have none.
    """
    content = message.get(key)
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if any(not isinstance(part, str) for part in parts):
            raise DataError(f"{where}: {key!r} has parts that are no text; only text is trained")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise DataError(f"{where}: {key!r} is {type(content).__name__}, not text")
    return content


def turn(question: str, answer: str, system: str = "") -> list[Message]:
    """A question and its answer, after a system message unless that is empty."""
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    return [
        *first,
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
