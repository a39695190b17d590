"""Formats that are recognised by their columns, then those of single data sets."""

from collections.abc import Mapping, Sequence
from functools import partial

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

__all__ = ["messages", "plain_text", "preference", "prompt_completion", "sharegpt"]


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


# Formats of single data sets, used only where a source names them (`format: gsm8k`).
# docs/data-formats.md says of each which columns it reads, what it makes and what it leaves out.

BOXED_PROMPT = (
    "Solve the following math problem. "
    "Make sure to put the answer (and only answer) inside \\boxed{}.\n\n"
)
"""What stands before every problem of OpenMathInstruct-2, in training and in its evaluation."""

MIN_SOLUTION_CHARACTERS = 200
MAX_CHARACTERS = 3072
"""1024 tokens at 3 characters each: Llama 3 needs a token for 2.9 characters of GSM8K answers."""

_TEXTS = ("opc_annealing", "llama_3_syne", "redpajama")
_ALPACAS = ("alpaca_zh", "alpaca_gpt4_zh", "ruozhiba", "stem_zh")
_SHAREGPTS = ("openhermes_2_5", "magpie")
_TURNS = {
    "gsm8k": ("question", "answer"),
    "ultrainteract": ("instruction", "response"),
    "opc_sft_stage1": ("instruction", "output"),
    "opc_sft_stage2": ("instruction", "output"),
    "openorca": ("question", "response", "system_prompt"),
}
"""Columns of the question, the answer, and the system message, which may be empty."""


def _turn(row: Row, columns: tuple[str, ...]) -> Document:
    question, answer, *system = columns
    said = read_text(row, system[0], optional=True) if system else ""
    return turn(read_text(row, question), read_text(row, answer), said)


for _name, _columns in _TURNS.items():
    register_format(_name, reads=_columns)(partial(_turn, columns=_columns))
for _name in _TEXTS:
    register_format(_name, reads=("text",))(partial(read_text, column="text"))
for _name in _ALPACAS:
    register_format(_name, reads=ALPACA_COLUMNS)(alpaca)
for _name in _SHAREGPTS:
    register_format(_name, reads=("conversations",))(partial(read_sharegpt, column="conversations"))
register_format("ultrachat_200k", reads=("messages",))(partial(read_messages, column="messages"))
register_format("ultrafeedback", reads=("chosen", "prompt"))(preference)


@register_format("samsum", reads=("dialogue", "summary"))
def samsum(row: Row) -> Document:
    """A request to summarize a dialogue, and its summary."""
    question = "Summarize this dialogue:\n\n" + read_text(row, "dialogue")
    return turn(question, read_text(row, "summary"))


@register_format("openmathinstruct_2", reads=("problem", "generated_solution"))
def openmathinstruct_2(row: Row) -> Document | None:
    r"""The problem below a request for a boxed answer, and the solution.

    Left out, as in the released training code of Control LLM: solutions below 200 characters, and
    problems or solutions above 1024 tokens. A format knows no tokenizer, so here the upper limit
    is 3072 characters; `max_length` with `long_chat: drop` is exact.
    """
    problem, solution = read_text(row, "problem"), read_text(row, "generated_solution")
    if not MIN_SOLUTION_CHARACTERS <= len(solution) <= MAX_CHARACTERS:
        return None
    if len(problem) > MAX_CHARACTERS:
        return None
    return turn(BOXED_PROMPT + problem, solution)


@register_format("mbpp", reads=("text", "code", "test_list"))
def mbpp(row: Row) -> Document:
    r"""The task with its tests, as its evaluation asks, and the code.

    The file's line ends (`\r\n`, some a lone `\r`) become `\n`, and blank ends are cut.

    Raises:
        DataError: a column is missing or holds no text, or a test is no text; says which.
    """
    tests = read_list(row, "test_list")
    for i, test in enumerate(tests):
        if not isinstance(test, str):
            raise DataError(f"column 'test_list', item {i} is a {type(test).__name__}, not text")
    question = "\n".join([read_text(row, "text"), "Your code should pass these tests:", "", *tests])
    return turn(_unix(question), _unix(read_text(row, "code")))


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip()
