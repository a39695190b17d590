"""Data sets of mathematics and reasoning, each chosen by its name."""

from controlllm.data.formats.base import register_format
from controlllm.data.formats.reading import Document, Row, read_text, turn

__all__ = ["BOXED_PROMPT", "gsm8k", "openmathinstruct_2", "ultrainteract"]

BOXED_PROMPT = (
    "Solve the following math problem. "
    "Make sure to put the answer (and only answer) inside \\boxed{}.\n\n"
)
"""What stands before every problem of OpenMathInstruct-2, in training and in its evaluation."""

MIN_SOLUTION_CHARACTERS = 200
MAX_CHARACTERS = 3072
"""1024 tokens at 3 characters each: Llama 3 needs a token for 2.9 characters of GSM8K answers."""


@register_format("openmathinstruct_2", reads=("problem", "generated_solution"))
def openmathinstruct_2(row: Row) -> Document | None:
    r"""`nvidia/OpenMathInstruct-2`, splits `train`, `train_1M`, `train_2M`, `train_5M`.

    Columns: `problem`, `generated_solution`, `expected_answer`, `problem_source` (all text). Makes
    the problem below a request for a boxed answer, and the solution.

    Left out, as in the released training code of Control LLM: solutions below 200 characters, and
    problems or solutions above 1024 tokens. A format knows no tokenizer, so here the upper limit
    is 3072 characters; `max_length` with `long_chat: drop` is exact. (The published solutions are
    cut to 1024 Llama 3.1 tokens already, say its makers; some 0.1 % of the problems are longer.)
    """
    problem, solution = read_text(row, "problem"), read_text(row, "generated_solution")
    if not MIN_SOLUTION_CHARACTERS <= len(solution) <= MAX_CHARACTERS:
        return None
    if len(problem) > MAX_CHARACTERS:
        return None
    return turn(BOXED_PROMPT + problem, solution)


@register_format("gsm8k", reads=("question", "answer"))
def gsm8k(row: Row) -> Document:
    """`openai/gsm8k`, subset `main` or `socratic`, splits `train` and `test` (for evaluation only).

    Columns: `question`, `answer` (text; a line `#### 72` at its end). The calculator's marks
    (`48/2 = <<48/2=24>>24`) stay: the few-shot examples of the usual evaluation have them, too, and
    it reads the number after `####` either way.
    """
    return turn(read_text(row, "question"), read_text(row, "answer"))


@register_format("ultrainteract", reads=("instruction", "response"))
def ultrainteract(row: Row) -> Document:
    """`openbmb/UltraInteract_sft`, split `train`.

    Columns: `task`, `dataset`, `instruction`, `response`, `id`, `parent_id` (all text). Each row is
    one step of a tree and complete by itself: the instruction and its response.
    """
    return turn(read_text(row, "instruction"), read_text(row, "response"))
