"""Suites and single tasks with their questions, before any model is loaded."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.evaluate.items.metrics import check_readings, usual_asked, usual_choice
from controlllm.evaluate.items.records import Asked
from controlllm.evaluate.items.tasks import LoadedBenchmark, load_benchmark
from controlllm.evaluate.suites import (
    Benchmark,
    Suite,
    find_tasks,
    prepare_tasks,
    what_is_missing,
)

__all__ = ["Draw", "LoadedSuite", "available", "load_questions", "load_tasks"]

OF_TASKS = "tasks"
"""The suite of tasks that are named one by one."""
_OF_SINGLE = (
    "Single tasks take their documents from the Hub, or from where a task file of --include_path "
    "says; a suite takes them from --data_dir, too."
)


@dataclass(frozen=True)
class Draw:
    """Which questions are asked, and how often.

    Attributes:
        sample: how many of each benchmark are drawn; None = all.
        limit: the first so many of each task; None = all.
        seed: of the draw and of the examples before each question.
        max_new_tokens: longest written answer; None = as the suite or the task says.
        code_samples: programs for each question of code.
        code_temperature: at which several are drawn.
    """

    sample: int | None = None
    limit: int | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    code_samples: int = 1
    code_temperature: float = 0.8


@dataclass(frozen=True)
class LoadedSuite:
    """A suite whose questions are loaded.

    Attributes:
        name: its name.
        benchmarks: how each is asked, and lm-eval's tasks of it.
    """

    name: str
    benchmarks: tuple[tuple[Asked, LoadedBenchmark], ...]

    def for_tokenizer(self, tokenizer: Any) -> "LoadedSuite":
        """With "auto" decided: written answers behind the chat template, where there is one.

        Raises:
            ConfigError: chat messages are asked for, and there is no chat template.
        """
        has_template = bool(getattr(tokenizer, "chat_template", None))
        decided = []
        for asked, loaded in self.benchmarks:
            prompt = asked.prompt
            if prompt == "auto":
                prompt = "chat" if has_template and asked.kind == "generate" else "plain"
            if prompt == "chat" and not has_template:
                raise ConfigError(
                    f"{asked.name} is asked as a chat, but the tokenizer has no chat template; "
                    "leave --apply_chat_template out, or write `prompt: plain` into the suite."
                )
            decided.append((replace(asked, prompt=prompt), replace(loaded, chat=prompt == "chat")))
        return replace(self, benchmarks=tuple(decided))

    def of_kind(self, kind: str) -> list[str]:
        """The names of its benchmarks of a kind."""
        return [asked.name for asked, _ in self.benchmarks if asked.kind == kind]


def available(
    suite: Suite,
    data_dir: str | None,
    skip_missing: bool = False,
    instead: str = "--skip_missing true leaves these benchmarks out",
) -> Suite:
    """A suite, if this machine has all that it needs.

    Args:
        suite: what is to be asked.
        data_dir: local data, as in `prepare_tasks`.
        skip_missing: leave out what cannot be asked here.
        instead: what else can be done about it, for the message.

    Raises:
        ConfigError: something is missing, with what to do; or nothing is left.
    """
    missing = {one.name: what_is_missing(one, data_dir) for one in suite.benchmarks}
    lacking = {name: told for name, told in missing.items() if told}
    if lacking and not skip_missing:
        told = "\n".join(f"  {name}: {one}" for name, all_ in lacking.items() for one in all_)
        raise ConfigError(
            f"suite {suite.name} lacks something on this machine ({instead}):\n{told}"
        )
    kept = tuple(one for one in suite.benchmarks if one.name not in lacking)
    if not kept:
        raise ConfigError(f"suite {suite.name}: no benchmark can be asked on this machine.")
    return replace(suite, benchmarks=kept)


def load_questions(
    suite: Suite,
    data_dir: str | None = None,
    draw: Draw | None = None,
    include_path: Sequence[str | Path] = (),
) -> LoadedSuite:
    """Load the questions of a suite.

    Args:
        suite: what is asked; see `available`.
        data_dir: local data, as in `prepare_tasks`; what is not there comes from the Hub.
        draw: which questions.
        include_path: folders with further task files that the suite names.

    Raises:
        ConfigError: a task is not known or has not the metrics that it is to be read by, local data
            do not do, or a package is missing.
        DataError: documents cannot be loaded.
    """
    draw = draw or Draw()
    with tempfile.TemporaryDirectory(prefix="controlllm-tasks-") as folder:
        prepared = prepare_tasks(suite, data_dir, Path(folder) / "tasks", include_path)
        manager = find_tasks(list(prepared.tasks.values()), [prepared.include_path])
        pairs = []
        for one in suite.benchmarks:
            longest = draw.max_new_tokens or one.max_new_tokens
            samples = draw.code_samples if one.kind == "code" else 1
            settings: dict[str, Any] = {"max_gen_toks": longest} if longest else {}
            if samples > 1:
                settings |= {"do_sample": True, "temperature": draw.code_temperature}
            loaded = load_benchmark(
                one.name,
                (prepared.tasks[one.name],),
                manager,
                shots=one.shots,
                sample=draw.sample,
                limit=draw.limit,
                seed=draw.seed,
                samples=samples,
                settings=settings,
            )
            asked = _asked(one, draw, longest, samples)
            if asked.kind == "choice" and asked.choice is None:
                asked = replace(asked, choice=usual_choice(loaded))
            check_readings(asked, loaded)
            pairs.append((asked, loaded))
    return LoadedSuite(suite.name, tuple(pairs))


def load_tasks(
    names: Sequence[str],
    manager: Any,
    draw: Draw | None = None,
    shots: int | None = None,
    chat: bool = False,
) -> LoadedSuite:
    """Load single tasks, each of which becomes a benchmark that is read as usual.

    Args:
        names: lm-eval's names of tasks or groups.
        manager: what `find_tasks` gave.
        draw: which questions.
        shots: solved examples before each; None = as the task says.
        chat: whether questions are put as chat messages.

    Raises:
        ConfigError: a package is missing.
        DataError: documents cannot be loaded.
    """
    draw = draw or Draw()
    pairs = []
    for name in names:
        loaded = load_benchmark(
            name,
            (name,),
            manager,
            shots=shots,
            sample=draw.sample,
            limit=draw.limit,
            seed=draw.seed,
            settings={"max_gen_toks": draw.max_new_tokens} if draw.max_new_tokens else None,
            advice=_OF_SINGLE,
        )
        known = {
            "prompt": "chat" if chat else "plain",
            "shots": shots,
            "max_new_tokens": draw.max_new_tokens,
            "sampled": draw.sample or draw.limit,
            "seed": draw.seed,
        }
        pairs.append((usual_asked(name, loaded, **known), loaded))
    return LoadedSuite(OF_TASKS, tuple(pairs))


def _asked(one: Benchmark, draw: Draw, longest: int | None, samples: int) -> Asked:
    is_choice = one.kind == "choice"
    return Asked(
        name=one.name,
        tasks=one.tasks,
        kind=one.kind,
        chance=one.chance,
        prompt=one.prompt,
        shots=one.shots,
        strict=None if is_choice else one.strict,
        lenient=None if is_choice else one.lenient,
        choice=one.strict if is_choice else None,
        max_new_tokens=longest,
        dataset=one.dataset or "",
        licence=one.licence,
        samples=samples,
        sampled=draw.sample or draw.limit,
        seed=draw.seed,
    )
