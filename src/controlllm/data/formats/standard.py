"""Formats that are recognised by their columns: shapes that many data sets share."""

from collections.abc import Mapping, Sequence

from controlllm.common.errors import DataError
from controlllm.data.config.columns import column_told
from controlllm.data.formats.base import register_format
from controlllm.data.formats.reading import (
    ROLES,
    Document,
    Message,
    Row,
    check_role,
    message_content,
    read_list,
    read_messages,
    read_text,
    read_turns,
    turn,
)

__all__ = [
    "ALPACA_COLUMNS",
    "SHAREGPT_ROLES",
    "alpaca",
    "messages",
    "plain_text",
    "preference",
    "prompt_completion",
    "read_sharegpt",
    "sharegpt",
]


@register_format("messages", "messages", reads=())
def messages(row: Row) -> Document:
    """The standard `[{"role": ..., "content": ...}, ...]`; other keys (tool calls) are kept."""
    return read_messages(row, "messages")


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


@register_format("sharegpt", "conversations", reads=("system",))
def sharegpt(row: Row) -> Document:
    """`[{"from": "human" | "gpt" | ..., "value": ...}, ...]`, and an optional `system` column."""
    system = read_text(row, "system", optional=True)
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    return first + read_sharegpt(row, "conversations")


def read_sharegpt(row: Row, column: str) -> list[Message]:
    """The turns `{"from": ..., "value": ...}` in a column as messages.

    Turns that are messages already (role, content) must have the roles of messages.

    Raises:
        DataError: it is no list of turns, or a speaker is unknown; says which turn.
    """
    conversation: list[Message] = []
    for i, item in enumerate(read_list(row, column)):
        where = f"{column_told(row, column)}, turn {i}"
        if not isinstance(item, Mapping):
            raise DataError(f"{where}: {item!r} is not a mapping")
        speaker, text = ("from", "value") if "from" in item else ("role", "content")
        role = str(item.get(speaker))
        if speaker == "from":
            check_role(role, SHAREGPT_ROLES, where)
            role = SHAREGPT_ROLES[role]
        else:
            check_role(role, ROLES, where)
        conversation.append({"role": role, "content": message_content(item, text, where)})
    return conversation


ALPACA_COLUMNS = ("instruction", "output", "input", "system", "history")
"""All that rows of this shape may have."""


@register_format("alpaca", "instruction", "output", reads=ALPACA_COLUMNS[2:])
def alpaca(row: Row) -> Document:
    """`instruction`, optional `input` below it, `output`; optional `system` and `history`.

    The history is a list of earlier [question, answer] pairs. `tatsu-lab/alpaca` (split `train`) is
    of this shape: its fourth column, `text`, holds the same rendered by a template and is not read.

    Raises:
        DataError: a column is missing or holds no text, or `history` no such pairs; says which.
    """
    system, more = read_text(row, "system", optional=True), read_text(row, "input", optional=True)
    conversation: list[Message] = [{"role": "system", "content": system}] if system else []
    for i, pair in enumerate(read_list(row, "history") if row.get("history") else []):
        if not (
            isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        ):
            raise DataError(f"column 'history', item {i}: {pair!r} is not [question, answer]")
        conversation += turn(*pair)
    question = "\n".join(part for part in (read_text(row, "instruction"), more) if part)
    return conversation + turn(question, read_text(row, "output"))


@register_format("prompt_completion", "prompt", "completion", reads=())
def prompt_completion(row: Row) -> Document:
    """A question and its answer, each a text or a list of messages."""
    return read_turns(row, "prompt", "user") + read_turns(row, "completion", "assistant")


@register_format("preference", "chosen", "rejected", reads=("prompt",))
def preference(row: Row) -> Document:
    """The `chosen` answer of a pair, as a conversation to imitate; `rejected` is not read.

    `chosen` is a whole conversation, or only its last part (a text, or messages from an assistant's
    on); the part before it then stands in `prompt`, a text or a list of messages.
    """
    chosen = read_turns(row, "chosen", "assistant")
    if chosen[0]["role"] != "assistant":
        return chosen
    return read_turns(row, "prompt", "user") + chosen


@register_format("text", "text", reads=())
def plain_text(row: Row) -> Document:
    """A document to continue: a text, or a list of its lines, as collections of poems have them."""
    lines = row["text"]
    if isinstance(lines, list | tuple) and all(isinstance(line, str) for line in lines):
        row = {**row, "text": "\n".join(lines)}
    return read_text(row, "text")
