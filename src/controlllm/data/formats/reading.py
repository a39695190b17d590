"""Helpers to read the columns of a row; an odd value is an error with the column's name."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

from controlllm.common.errors import DataError
from controlllm.common.registry import nearest_name
from controlllm.data.config.columns import column_told, kind_of, not_text, value_of

__all__ = [
    "ROLES",
    "Document",
    "Message",
    "Row",
    "check_role",
    "message_content",
    "read_list",
    "read_messages",
    "read_text",
    "read_turns",
    "turn",
]

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""The roles of messages, as chat templates know them (`ipython` is Llama 3's for tools)."""

_ELSEWHERE = {
    **dict.fromkeys(("human", "prompter", "customer", "question"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "chatbot", "model", "ai", "answer"), "assistant"),
    "function_call": "assistant",
    "observation": "tool",
}
"""Names that other data sets give them; only for advice, never for a guess."""


def check_role(role: str, roles: Collection[str], where: str) -> None:
    """Check who speaks: nothing would ever be learned from the turns of a misspelt role.

    Raises:
        DataError: it is none of them; with the nearest.
    """
    if role in roles:
        return
    plain = role.strip().lower()
    near = _ELSEWHERE.get(plain) or nearest_name(plain, roles)
    hint = f" Did you mean {near!r}?" if near in roles else ""
    raise DataError(f"{where}: the role {role!r} is not known; known: {', '.join(roles)}.{hint}")


Row: TypeAlias = Mapping[str, Any]
Message: TypeAlias = dict[str, Any]
Document: TypeAlias = str | list[Message]


def read_text(row: Row, column: str, optional: bool = False) -> str:
    """The text in a column; one that is `optional` may be missing, null or empty, and reads as "".

    Raises:
        DataError: it is missing, null, empty, only white space, or no text: numbers and lists are
            not made into one by a guess.
    """
    value = row.get(column) if optional else value_of(row, column)
    if isinstance(value, float) and math.isnan(value):
        value = None  # Tables write "no value" so.
    if value is None or value == "":
        if optional:
            return ""
        raise DataError(f"{column_told(row, column)} is {'null' if value is None else 'empty'}")
    if not isinstance(value, str):
        raise DataError(f"{column_told(row, column)} holds {not_text(value)}")
    if not optional and not value.strip():
        raise DataError(f"{column_told(row, column)} holds only white space")
    return value


def read_list(row: Row, column: str) -> list[Any]:
    """The list in a column, also when it is written as JSON text (as CSV files must).

    Raises:
        DataError: it is missing, no list, or empty.
    """
    value = value_of(row, column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{column_told(row, column)} is not valid JSON: {error}") from None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(f"{column_told(row, column)} holds {kind_of(value)}, not a list")
    if not value:
        raise DataError(f"{column_told(row, column)} is an empty list")
    return list(value)


def read_messages(row: Row, column: str, roles: Collection[str] | None = ROLES) -> list[Message]:
    """The messages `{"role": ..., "content": ...}` in a column; other keys (tool calls) are kept.

    `roles` are those that may speak; None: any, as for a chat template with roles of its own.

    Raises:
        DataError: it is no list of messages, or a role is not known; says which message is wrong.
    """
    conversation: list[Message] = []
    for i, message in enumerate(read_list(row, column)):
        where = f"{column_told(row, column)}, message {i}"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"{where}: {message!r} is not a mapping with 'role' and 'content'")
        if roles is not None:
            check_role(message["role"], roles, where)
        extra = {key: value for key, value in message.items() if value is not None}
        content = message_content(message, "content", where)
        conversation.append({**extra, "role": message["role"], "content": content})
    return conversation


def read_turns(row: Row, column: str, role: str) -> list[Message]:
    """The messages in a column, or its text as one message of `role`.

    Raises:
        DataError: as `read_messages` and `read_text` do.
    """
    value = value_of(row, column)
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if is_list and any(isinstance(part, Mapping) for part in value):
        return read_messages(row, column)
    return [{"role": role, "content": read_text(row, column)}]


def message_content(message: Mapping[str, Any], key: str, where: str) -> str:
    """The text of a message: a text, or a list of `{"type": "text", "text": ...}` parts.

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
        raise DataError(f"{where}: {key!r} is {kind_of(content)}, not text")
    return content


def turn(question: str, answer: str, system: str = "") -> list[Message]:
    """A question and its answer, after a system message unless that is empty."""
    said = {"system": system, "user": question, "assistant": answer}
    return [{"role": who, "content": text} for who, text in said.items() if text or who != "system"]
