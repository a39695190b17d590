"""`controlllm suites`: which suites of benchmarks there are, and what they need on this machine."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec

from controlllm.cli.kit.parsing import as_list, parse_options
from controlllm.common.errors import ConfigError
from controlllm.common.settings import RUNS_CODE
from controlllm.common.text.readable import readable
from controlllm.common.text.tables import format_table
from controlllm.evaluate.suites import (
    Benchmark,
    Suite,
    find_tasks,
    load_suite,
    suite_names,
    what_is_left_out,
    what_is_missing,
)
from controlllm.evaluate.suites.stock import OWN

__all__ = ["SuitesOptions", "run"]

_COLUMNS = [
    *("benchmark", "tasks", "asked", "shots", "strict", "lenient"),
    *("items", "chance", "MDE80", "licence"),
]
_NOTE = (
    "MDE80: the smallest difference, in points, that the items show with 80 % power where one in "
    "five is answered differently by the two models. strict: the answer in the asked format; "
    "lenient: in any."
)


@dataclass
class SuitesOptions:
    """List the suites of benchmarks, or show one: its tasks, and what this machine lacks for it."""

    name: str | None = None
    """A suite, or the path of one's YAML; the word after `suites` is taken for it."""
    data_dir: str | None = None
    """Folder with local data, laid out as docs/suites.md says."""
    suite_dir: str | None = None
    """Folder with further suites (YAML)."""
    include_path: str | list[str] = field(default_factory=list, metadata=RUNS_CODE)
    """Folders with further task files that a suite of your own names."""


def run(argv: list[str]) -> int:
    """Print the suites, or one of them; the exit code is 2 where a suite's file is wrong."""
    if argv and not argv[0].startswith("-"):
        argv = ["--name", *argv]
    options = parse_options(SuitesOptions, argv, "suites", models=False)
    if options.name is None:
        suites, wrong = _loaded(options.suite_dir)
        lines = _all(suites)
    else:
        suite, wrong = load_suite(options.name, options.suite_dir), []
        if suite.name not in suite_names() and find_spec("lm_eval") is not None:
            tasks = (task for one in suite.benchmarks for task in one.tasks)
            find_tasks([*tasks], [OWN, *as_list(options.include_path)])
        lines = _one(suite, options.data_dir)
    print(readable("\n".join(lines)))
    for error in wrong:
        print(f"controlllm: {readable(str(error))}", file=sys.stderr)
    return 2 if wrong else 0


def _loaded(suite_dir: str | None) -> tuple[list[Suite], list[ConfigError]]:
    """All suites whose files are right, and what is wrong with the others."""
    suites, wrong = [], []
    for name in suite_names(suite_dir):
        try:
            suites.append(load_suite(name, suite_dir))
        except ConfigError as error:
            wrong.append(error)
    return suites, wrong


def _all(suites: Iterable[Suite]) -> Iterator[str]:
    for suite in suites:
        yield f"{suite.name}: {', '.join(one.name for one in suite.benchmarks)}"
        yield f"    {suite.about}"
    yield "\n`controlllm suites NAME` shows one, and what this machine lacks for it."


def _one(suite: Suite, data_dir: str | None) -> Iterator[str]:
    yield f"{suite.name}: {suite.about}\n"
    yield format_table(_COLUMNS, [_row(one) for one in suite.benchmarks])
    yield f"\n{_NOTE}\n"
    missing = {one.name: what_is_missing(one, data_dir) for one in suite.benchmarks}
    partly = {one.name: what_is_left_out(one, data_dir) for one in suite.benchmarks}
    yield from (f"in part for {name}: {told}" for name, told in partly.items() if told)
    if not any(missing.values()) and not any(partly.values()):
        yield "Nothing is missing on this machine."
    for name, sentences in missing.items():
        yield from (f"missing for {name}: {sentence}" for sentence in sentences)


def _row(one: Benchmark) -> list[object]:
    more = f", {len(one.tasks) - 1} more" if len(one.tasks) > 1 else ""
    laid = f" as {one.template}" if one.template else ""
    asked = f"{one.kind}, {one.prompt}"
    shots = "the task's" if one.shots is None else one.shots
    detectable = f"{100 * one.detectable:.1f}"
    metrics = [one.strict, one.lenient]
    chance = f"{one.chance:g}"
    return [
        *(one.name, f"{one.tasks[0]}{more}{laid}", asked, shots, *metrics),
        *(one.items, chance, detectable, one.licence),
    ]
