"""Step 2: a row of a known shape -> a document: a text (`str`) or a conversation (messages)."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from controlllm.common.errors import DataError
from controlllm.common.registry import Registry

__all__ = ["FORMATS", "Document", "Format", "Message", "Row", "register_format", "to_document"]

Row: TypeAlias = Mapping[str, Any]
Message: TypeAlias = dict[str, Any]
Document: TypeAlias = str | list[Message]


@dataclass(frozen=True)
class Format:
    """A shape of rows and the function that reads it."""

    columns: tuple[str, ...]
    """The columns a row must have to be of this format."""

    convert: Callable[[Row], Document]
    """The reader; raises `DataError` saying which column is wrong and how."""


FORMATS: Registry[Format] = Registry("format")
"""Known formats; the first registered one whose columns a row has is taken."""

_order: list[str] = []


def register_format(
    name: str, *columns: str
) -> Callable[[Callable[[Row], Document]], Callable[[Row], Document]]:
    """Decorate a function `row -> document` to read rows that have `columns` as format `name`."""

    def keep(convert: Callable[[Row], Document]) -> Callable[[Row], Document]:
        FORMATS.register(name)(Format(columns, convert))
        _order.append(name)
        return convert

    return keep


def to_document(
    row: Row, format: str | None = None, columns: Mapping[str, str] | None = None
) -> Document:
    """Read one row.

    Args:
        row: column -> value.
        format: name of the format, None to recognise it.
        columns: the format's column -> the row's column.

    Raises:
        DataError: a column is missing, null, empty or of a wrong type, or no format fits; says
            which.
    """
    mapped = _rename(row, columns or {})
    known = FORMATS.get(format) if format else _recognise(mapped, columns or {})
    missing = [column for column in known.columns if column not in mapped]
    if missing:
        raise DataError(
            f"column {missing[0]!r} is missing (the row has {_listed(row)}); map it with `columns`"
        )
    return known.convert(mapped)


def _rename(row: Row, columns: Mapping[str, str]) -> Row:
    missing = [source for source in columns.values() if source not in row]
    if missing:
        raise DataError(
            f"column {missing[0]!r}, named in `columns`, is missing (the row has {_listed(row)})"
        )
    return {**row, **{target: row[source] for target, source in columns.items()}}


def _recognise(row: Row, columns: Mapping[str, str]) -> Format:
    """What the user mapped decides before what the row has besides."""
    for present in (set(columns), set(row)):
        for name in _order:
            known = FORMATS.get(name)
            if present.issuperset(known.columns):
                return known
    raise DataError(
        f"no format fits the columns {_listed(row)}; known: "
        + "; ".join(f"{name} ({', '.join(FORMATS.get(name).columns)})" for name in _order)
        + ". Map yours with `columns`, e.g. {prompt: question, completion: answer}"
    )


def _listed(row: Row) -> str:
    return ", ".join(map(repr, row)) or "none"


def _text(row: Row, column: str, optional: bool = False) -> str:
    """The text in a column; numbers become text, lists of texts are joined by newlines."""
    value = row.get(column)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if all(isinstance(part, str) for part in value):
            value = "\n".join(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        if optional:
            return ""
        raise DataError(f"column {column!r} is {'null' if value is None else 'empty'}")
    if not isinstance(value, str):
        raise DataError(f"column {column!r} is a {type(value).__name__}, not text")
    if not optional and not value.strip():
        raise DataError(f"column {column!r} holds only white space")
    return value


def _list(row: Row, column: str) -> list[Any]:
    """The list in a column, also when it is written as JSON text (as CSV files must)."""
    value = row.get(column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"column {column!r} is not valid JSON: {error}") from None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f"column {column!r} is a {type(value).__name__}, not a list")
    if not value:
        raise DataError(f"column {column!r} is an empty list")
    return list(value)


def _content(message: Mapping[str, Any], key: str, where: str) -> str:
    """The text of a message: a text, or a list of `{"type": "text", "text": ...}` parts."""
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


@register_format("messages", "messages")
def _messages(row: Row) -> Document:
    """The standard `[{"role": ..., "content": ...}, ...]`; other keys (tool calls) are kept."""
    conversation: list[Message] = []
    for i, message in enumerate(_list(row, "messages")):
        where = f"column 'messages', message {i}"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"{where}: {message!r} is not a mapping with 'role' and 'content'")
        extra = {key: value for key, value in message.items() if value is not None}
        content = _content(message, "content", where)
        conversation.append({**extra, "role": message["role"], "content": content})
    return conversation


SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}


@register_format("sharegpt", "conversations")
def _sharegpt(row: Row) -> Document:
    """`[{"from": "human" | "gpt" | ..., "value": ...}, ...]`, and an optional `system` column."""
    system = _text(row, "system", optional=True)
    conversation: list[Message] = [{"role": "system", "content": system}] if system else []
    for i, turn in enumerate(_list(row, "conversations")):
        where = f"column 'conversations', turn {i}"
        if not isinstance(turn, Mapping):
            raise DataError(f"{where}: {turn!r} is not a mapping")
        speaker, text = ("from", "value") if "from" in turn else ("role", "content")
        role = SHAREGPT_ROLES.get(str(turn.get(speaker)))
        if role is None:
            raise DataError(
                f"{where}: {speaker!r} is {turn.get(speaker)!r}; known: {', '.join(SHAREGPT_ROLES)}"
            )
        conversation.append({"role": role, "content": _content(turn, text, where)})
    return conversation


@register_format("alpaca", "instruction", "output")
def _alpaca(row: Row) -> Document:
    """`instruction`, optional `input` below it, `output`; optional `system` and `history`.

    The history is a list of earlier [question, answer] pairs.
    """
    system, more = _text(row, "system", optional=True), _text(row, "input", optional=True)
    conversation: list[Message] = [{"role": "system", "content": system}] if system else []
    for i, pair in enumerate(_list(row, "history") if row.get("history") else []):
        if not (
            isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        ):
            raise DataError(f"column 'history', item {i}: {pair!r} is not [question, answer]")
        conversation += _turn(*pair)
    question = "\n".join(part for part in (_text(row, "instruction"), more) if part)
    return conversation + _turn(question, _text(row, "output"))


@register_format("prompt_completion", "prompt", "completion")
def _prompt_completion(row: Row) -> Document:
    """A question and its answer, as texts or as lists of messages."""
    if isinstance(row["prompt"], list) and isinstance(row["completion"], list):
        return _messages({"messages": row["prompt"] + row["completion"]})
    return _turn(_text(row, "prompt"), _text(row, "completion"))


@register_format("text", "text")
def _plain_text(row: Row) -> Document:
    """A document to continue; a list of texts is joined by newlines."""
    return _text(row, "text")


def _turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
