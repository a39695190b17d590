"""From what a model wrote to a program with its tests: HumanEval(+), MBPP, MBPP+.

A completion is read in two ways. *Strict* takes it as the task's format says: HumanEval's goes on
where the prompt stops, MBPP's is the code itself up to its end mark; a block of Markdown, or a
sentence before the code, is an error of format. *Lenient* looks for code where the strict reading
is none: the fenced block that defines the function, else the longest beginning that parses. So what
passes strictly passes leniently, and the difference is lost format.
"""

import ast
import builtins
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from controlllm.common.errors import DataError

__all__ = [
    "HUMANEVAL_STOPS",
    "MBPP_STOPS",
    "Program",
    "Reading",
    "cut_at",
    "find_code",
    "human_eval",
    "in_format",
    "mbpp",
]

Reading = Literal["strict", "lenient"]

HUMANEVAL_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "```")
"""Where a completion of HumanEval ends: where its function does (Chen et al., 2021)."""
MBPP_STOPS = ("[DONE]", "```")
"""Where a completion of MBPP ends: at its mark (Austin et al., 2021), or with the block that the
prompt opened."""

MOST_CHARACTERS = 1 << 16
"""Longer texts are no code of these tasks."""
_MOST_NESTED = 90
"""Brackets in brackets, and signs in a row: far below what Python's parser bears."""
_MOST_TRIES = 50
_FENCE = re.compile(r"^[ ]{0,3}```[ \t]*([\w+-]*)[ \t]*\n(.*?)(?:^[ ]{0,3}```|\Z)", re.M | re.S)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_PYTHON = {"", "python", "python3", "py"}


@dataclass(frozen=True)
class Program:
    """A solution and its tests."""

    task_id: str
    """Which problem it is; programs of one problem share a time-out."""
    solution: str
    """Defines what the tests call; runs in a process of its own."""
    tests: str
    """Run in another process; they pass if they run to their end without an error."""
    names: tuple[str, ...]
    """What the tests call in the solution."""
    setup: str = ""
    """Definitions that the tests need beside it."""
    in_format: bool = True
    """Whether what the model wrote is code as the task's format asks, right or wrong; the same for
    both readings."""
    reference: str = ""
    """A solution that is right, by which time is measured; empty = none is known."""


def human_eval(row: Mapping[str, Any], completion: str, reading: Reading = "strict") -> Program:
    """The program of a row of HumanEval or HumanEval+.

    Args:
        row: `task_id`, `prompt`, `test`, `entry_point`, and perhaps `canonical_solution`.
        completion: what the model wrote after the prompt.
        reading: how it is read.

    Raises:
        DataError: the row lacks something.
    """
    task, prompt, test, entry = _texts(row, "task_id", "prompt", "test", "entry_point")
    body = cut_at(completion, HUMANEVAL_STOPS)
    strict, is_code = prompt + body, _has_code(body) and in_format(prompt + body)
    rescue = reading == "lenient" and not is_code
    return Program(
        task_id=task,
        solution=_lenient_human_eval(prompt, completion, entry) if rescue else strict,
        tests=f"{test}\ncheck({entry})\n",
        names=(entry,),
        setup=prompt,
        in_format=is_code,
        reference=prompt + _texts(row, "canonical_solution")[0] if _has_reference(row) else "",
    )


def mbpp(row: Mapping[str, Any], completion: str, reading: Reading = "strict") -> Program:
    """The program of a row of MBPP (also the sanitized one) or MBPP+.

    A row with a `test` (MBPP+) is graded by it *and* by the asserts that the prompt shows: those
    alone are passed by a function that returns the constants of the prompt.

    Args:
        row: `task_id`, `test_list`, perhaps `test_setup_code`, `test_imports`, `test`, `code`.
        completion: what the model wrote.
        reading: how it is read.

    Raises:
        DataError: the row lacks something, or its tests do not parse.
    """
    task, asserts = str(row.get("task_id", "")), row.get("test_list")
    if not task or not asserts:
        raise DataError("a row of MBPP needs a task_id and a test_list")
    reference, imports = str(row.get("code") or ""), "\n".join(row.get("test_imports", []))
    parts = [row.get("test_setup_code"), *asserts, row.get("test")]
    tests = "\n".join(str(part) for part in parts if part) + "\n"
    names, modules = called_names(tests, imports, reference, task)
    code = cut_at(completion, MBPP_STOPS)
    is_code = _has_code(code) and in_format(code)
    rescue = reading == "lenient" and not (is_code and any(_defines(code, n) for n in names))
    return Program(
        task_id=task,
        solution=find_code(completion, names) if rescue else code,
        tests=tests,
        names=names,
        setup="\n".join([imports, *[f"import {module}" for module in modules]]),
        in_format=is_code,
        reference=reference,
    )


def _has_code(text: str) -> bool:
    """Whether there is more than comments and empty lines."""
    return any(line.strip() and not line.strip().startswith("#") for line in text.splitlines())


def _texts(row: Mapping[str, Any], *keys: str) -> list[str]:
    """The texts of a row under these names."""
    if missing := [key for key in keys if not isinstance(row.get(key), str)]:
        raise DataError(f"a row of HumanEval lacks {', '.join(missing)}")
    return [str(row[key]) for key in keys]


def _has_reference(row: Mapping[str, Any]) -> bool:
    return bool(row.get("canonical_solution"))


def called_names(
    tests: str, setup: str, reference: str, task_id: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What tests read that nobody defines but the solution.

    A builtin is taken from the solution only where the reference replaces it: the tests' `len` or
    `set` are no business of what a model wrote.

    Returns:
        Names of functions and classes, and modules of the standard library that tests use without
        importing them.

    Raises:
        DataError: tests, setup or reference do not parse.
    """
    try:
        nodes = [*ast.walk(ast.parse(tests)), *ast.walk(ast.parse(setup))]
        replaced = {one.name for one in ast.parse(reference).body if isinstance(one, _DEFINITIONS)}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"the tests of {task_id} do not parse: {error}") from None
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {one.id for one in names if not isinstance(one.ctx, ast.Load)}
    bound |= {one for node in nodes for one in _bound_by(node)} | (set(dir(builtins)) - replaced)
    free = dict.fromkeys(one.id for one in names if one.id not in bound)
    prefixes = {one.value.id for one in nodes if isinstance(one, ast.Attribute)
                and isinstance(one.value, ast.Name)}  # fmt: skip
    modules = [name for name in free if name in prefixes & sys.stdlib_module_names]
    return tuple(name for name in free if name not in modules), tuple(modules)


def _bound_by(node: ast.AST) -> Iterable[str]:
    """Names that a statement or a parameter binds, other than by assignment."""
    if isinstance(node, _DEFINITIONS):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.alias):
        yield node.asname or node.name.partition(".")[0]
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name


def cut_at(text: str, stops: Iterable[str]) -> str:
    """A text up to the first of these marks."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def in_format(solution: str) -> bool:
    """Whether a text is Python: it parses, and is of a length that a solution can have."""
    return _fault(solution) is None


def _fault(code: str) -> int | None:
    """The line at which code stops being Python, from 1; 0 = as a whole; None = it is Python."""
    if len(code) > MOST_CHARACTERS or _nested(code) > _MOST_NESTED:
        return 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is no matter here
            ast.parse(code)
    except SyntaxError as error:
        return error.lineno or 0
    except (ValueError, RecursionError, MemoryError):
        return 0
    return None


def _nested(text: str) -> int:
    """How deep brackets stand in brackets at most, counted without reading strings."""
    deepest = depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(0, depth - 1)
    return deepest


def find_code(text: str, names: Iterable[str]) -> str:
    """The code in what a model wrote, wherever it stands.

    The first fenced block of Python that defines one of the names, else the first fenced block of
    Python, else the text from its first line that looks like code, up to where it stops parsing.
    """
    text = text[:MOST_CHARACTERS]
    blocks = [body for language, body in _FENCE.findall(text) if language.lower() in _PYTHON]
    wanted = [body for body in blocks if any(_defines(body, name) for name in names)]
    if wanted or blocks:
        return (wanted or blocks)[0]
    first = re.search(r"^(?:import |from \w|def |class |@\w|async def )", text, re.M)
    return _longest_that_parses(cut_at(text[first.start() :], MBPP_STOPS)) if first else text


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^(?:async )?(?:def|class)\s+{re.escape(name)}\b", code, re.M) is not None


def _longest_that_parses(code: str) -> str:
    """As many lines from the beginning as are Python; the text itself if those are not found."""
    lines = code.splitlines(keepends=True)
    for _ in range(_MOST_TRIES):
        fault = _fault("".join(lines))
        if fault is None:
            return "".join(lines)
        if fault == 0 or len(lines) < 2:
            break
        del lines[min(fault, len(lines)) - 1 or 1 :]
    return code


def _lenient_human_eval(prompt: str, completion: str, entry: str) -> str:
    """The solution in a completion that may be a chat's answer."""
    code = find_code(completion, (entry,))
    before = prompt[: prompt.find(f"def {entry}")]
    if _defines(code, entry):
        return before + "\n" + code
    if code != completion and in_format(prompt + code):
        return prompt + code
    return _longest_that_parses(prompt + cut_at(completion, HUMANEVAL_STOPS))
