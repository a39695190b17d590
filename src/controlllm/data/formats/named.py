"""Formats of single data sets, used only where a source names them (`format: gsm8k`).

docs/data-formats.md says of each which columns it reads, what it makes and what it leaves out.
"""

from functools import partial

from controlllm.common.errors import DataError
from controlllm.data.formats.base import register_format
from controlllm.data.formats.reading import (
    Document,
    Row,
    read_list,
    read_messages,
    read_text,
    turn,
)
from controlllm.data.formats.standard import ALPACA_COLUMNS, alpaca, preference, read_sharegpt

__all__ = ["BOXED_PROMPT", "mbpp", "openmathinstruct_2", "samsum"]

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
