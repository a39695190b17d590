"""Benchmarks of a verb: suites and single tasks, found and loaded before any model is."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from controlllm.cli.kit.sets import CONFIG, as_list
from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.settings import RUNS_CODE, TINY, Rule
from controlllm.common.text.progress import stage
from controlllm.evaluate import (
    Asked,
    Grader,
    LoadedBenchmark,
    code_grader,
    default_store,
    find_tasks,
    load_benchmark,
    usual_asked,
)
from controlllm.evaluate.suites import Benchmark, Suite, load_suite, prepare_tasks, what_is_missing

__all__ = [
    "OF_BENCHMARKS",
    "BenchmarkOptions",
    "LoadedSuite",
    "folder_of",
    "graders_of",
    "loaded_suites",
    "store_of",
]

log = logging.getLogger(__name__)

OF_TASKS = "tasks"
"""The suite of tasks that are named one by one."""


@dataclass(kw_only=True)
class BenchmarkOptions:
    """Which benchmarks are asked, and how."""

    suite: str | list[str] = field(default_factory=list)
    """Suites of benchmarks, with commas between them: names that `controlllm suites` lists, or
    YAML files of your own."""
    suite_dir: str | None = None
    """Folder with suites of your own, to be named like the others."""
    benchmarks: str | list[str] = field(default_factory=list)
    """Only these benchmarks of the suites."""
    data_dir: str | None = None
    """Folder with local data of the benchmarks (docs/suites.md); what is not there comes from the
    Hub."""
    skip_missing: bool = False
    """Leave out benchmarks whose data or packages are missing, instead of stopping."""
    tasks: str | list[str] = field(default_factory=list)
    """Tasks of lm-evaluation-harness, with commas between them (or a list)."""
    include_path: str | list[str] = field(default_factory=list, metadata=RUNS_CODE)
    """Folders with further task files, for --tasks and for suites of your own."""
    num_fewshot: int | None = setting(None, at_least=0)
    """Solved examples before each question of --tasks; null = as the task says."""
    apply_chat_template: bool = False
    """Put the questions of --tasks as chat messages; suites say it themselves."""
    limit: int | None = setting(None, at_least=1)
    """The first so many questions of each task; null = all."""
    sample: int | None = setting(None, at_least=1)
    """So many questions of each benchmark, drawn by `seed`; null = all."""
    seed: int = setting(0, at_least=0)
    """Of the drawn questions and of the examples before each question."""
    max_new_tokens: int | None = setting(None, at_least=1)
    """Longest written answer in tokens; null = as the suite or the task says."""
    code_sandbox: str | None = setting(None, choices=("strict",))
    """`strict`: run the programs that a model writes for benchmarks of code, behind walls that are
    tried first (docs/code-evaluation.md); null = they are not run."""
    allow_unsafe_code: bool = field(default=False, metadata=RUNS_CODE)
    """Run such programs behind the walls that this machine has, even if some are missing."""
    code_samples: int = setting(1, at_least=1)
    """Programs written for each question of code; several are drawn at `code_temperature`."""
    code_temperature: float = setting(0.8, at_least=TINY)
    """Of several programs for one question."""
    pass_at: str | int | list[int] = 1
    """pass@k for these k, each at most `code_samples`."""
    store: str | None = None
    """Folder of all answers, which later evaluations read; null = below $CONTROLLLM_CACHE or
    ~/.cache/controlllm."""
    save_to: str | None = None
    """Folder for the results, one below it for each suite; null = `evaluations` in the run."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: with the option and what to do.
        """
        check_values(self, "")
        if self.limit is not None and self.sample is not None:
            raise ConfigError("limit and sample are both given; keep one of them.")
        if not all(1 <= k <= self.code_samples for k in self.pass_at_k):
            raise ConfigError(
                f"pass_at={self.pass_at!r}: each k is at least 1 and at most code_samples="
                f"{self.code_samples}."
            )

    @property
    def runs_code(self) -> bool:
        """Whether programs that a model writes are run."""
        return self.code_sandbox is not None or self.allow_unsafe_code

    @property
    def pass_at_k(self) -> list[int]:
        """The k of pass@k."""
        given = self.pass_at if isinstance(self.pass_at, list) else str(self.pass_at).split(",")
        try:
            return [int(k) for k in given]
        except ValueError:
            told = f"pass_at={self.pass_at!r} is no whole number, nor several with commas."
            raise ConfigError(told) from None

    @property
    def asked(self) -> bool:
        """Whether there is any benchmark."""
        return bool(self.suite or self.tasks)


def _rules() -> Iterator[Rule]:
    for name in ("suite_dir", "benchmarks", "data_dir", "skip_missing"):
        yield Rule(name, lambda one: bool(one.suite), "only --suite reads it; leave it out")
    for name in ("code_sandbox", "allow_unsafe_code", "code_samples"):
        yield Rule(name, lambda one: bool(one.suite), "only --suite reads it; leave it out")
    yield Rule("code_temperature", lambda one: one.code_samples > 1, "one program is not drawn")
    yield Rule("pass_at", lambda one: one.runs_code, "programs are run by --code_sandbox strict")
    for name in ("num_fewshot", "apply_chat_template"):
        yield Rule(name, lambda one: bool(one.tasks), "only --tasks reads it; leave it out")
    read = ("include_path", "limit", "sample", "seed", "max_new_tokens", "store", "save_to")
    for name in read:
        yield Rule(name, lambda one: one.asked, "only --suite and --tasks read it; leave it out")


OF_BENCHMARKS = tuple(_rules())
"""Which options are read, for `check_said`."""


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
                prompt = "chat" if has_template and asked.kind != "choice" else "plain"
            if prompt == "chat" and not has_template:
                raise ConfigError(
                    f"{asked.name} is asked as a chat, but the tokenizer has no chat template; "
                    "leave --apply_chat_template out, or write `prompt: plain` into the suite."
                )
            decided.append((replace(asked, prompt=prompt), replace(loaded, chat=prompt == "chat")))
        return replace(self, benchmarks=tuple(decided))


@contextmanager
def loaded_suites(options: BenchmarkOptions) -> Iterator[list[LoadedSuite]]:
    """Find and load everything that is asked; files that are written for it go when it ends.

    Raises:
        ConfigError: a suite, benchmark or task is not known (with the nearest name), or something
            is missing on this machine (with what to do).
        DataError: documents cannot be loaded.
    """
    suites = [load_suite(name, options.suite_dir) for name in as_list(options.suite)]
    chosen = _chosen(suites, as_list(options.benchmarks))
    _require(chosen, options)
    with ExitStack() as stack:
        loaded = []
        for suite in chosen:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="controlllm-tasks-"))
            with stage(f"loading the questions of {suite.name}"):
                loaded.append(_loaded(suite, options, Path(folder) / "tasks"))
        if options.tasks:
            loaded.append(_loaded_tasks(options))
        yield loaded


def graders_of(options: BenchmarkOptions, suites: Sequence[LoadedSuite]) -> dict[str, Grader]:
    """What runs and grades programs, if there are any and that is asked for. Walls are tried.

    Raises:
        ConfigError: walls are missing, with what to do.
    """
    code = [a.name for suite in suites for a, _ in suite.benchmarks if a.kind == "code"]
    if not code:
        return {}
    if not options.runs_code:
        log.warning(
            "%s: programs are not run, so only the likelihood of right ones is read; run them by "
            "--code_sandbox strict.",
            ", ".join(code),
        )
        return {}
    from controlllm.evaluate.code import code_runner

    with stage("trying the walls around programs"):
        runner = code_runner("unsafe" if options.allow_unsafe_code else "strict")
    return {"code": code_grader(runner, options.pass_at_k)}


def folder_of(options: BenchmarkOptions, model: str) -> Path:
    """Where results go: into the run, or below the working folder for models that are no run."""
    if options.save_to is not None:
        return Path(options.save_to)
    path = Path(model)
    if (path / CONFIG).is_file():
        return path / "evaluations"
    if (path.parent / CONFIG).is_file():
        return path.parent / "evaluations" / path.name
    return Path("evaluations") / (path.name or "model")


def store_of(options: BenchmarkOptions) -> Path:
    """The folder of all answers."""
    return Path(options.store) if options.store else default_store()


def _chosen(suites: Sequence[Suite], names: Sequence[str]) -> list[Suite]:
    """The suites with only the named benchmarks."""
    if not names:
        return list(suites)
    known = {one.name for suite in suites for one in suite.benchmarks}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"benchmarks={unknown} are in no suite; there are: {sorted(known)}.")
    return [
        replace(suite, benchmarks=kept)
        for suite in suites
        if (kept := tuple(one for one in suite.benchmarks if one.name in names))
    ]


def _require(suites: list[Suite], options: BenchmarkOptions) -> None:
    """Refuse, or leave out, what cannot be asked on this machine."""
    for place, suite in enumerate(suites):
        missing = {one.name: what_is_missing(one, options.data_dir) for one in suite.benchmarks}
        lacking = {name: told for name, told in missing.items() if told}
        if lacking and not options.skip_missing:
            told = "\n".join(f"  {name}: {one}" for name, all_ in lacking.items() for one in all_)
            raise ConfigError(
                f"suite {suite.name} lacks something on this machine (--skip_missing true leaves "
                f"these benchmarks out):\n{told}"
            )
        kept = tuple(one for one in suite.benchmarks if one.name not in lacking)
        if not kept:
            raise ConfigError(f"suite {suite.name}: no benchmark can be asked on this machine.")
        suites[place] = replace(suite, benchmarks=kept)


def _loaded(suite: Suite, options: BenchmarkOptions, folder: Path) -> LoadedSuite:
    own = as_list(options.include_path)
    prepared = prepare_tasks(suite, options.data_dir, folder, own)
    manager = find_tasks(list(prepared.tasks.values()), [prepared.include_path])
    pairs = []
    for one in suite.benchmarks:
        tasks = (prepared.tasks[one.name],)
        longest = options.max_new_tokens or one.max_new_tokens
        settings: dict[str, Any] = {"max_gen_toks": longest} if longest else {}
        samples = options.code_samples if one.kind == "code" else 1
        if samples > 1:
            settings |= {"do_sample": True, "temperature": options.code_temperature}
        loaded = load_benchmark(
            one.name,
            tasks,
            manager,
            shots=one.shots,
            sample=options.sample,
            limit=options.limit,
            seed=options.seed,
            samples=samples,
            settings=settings,
        )
        pairs.append((replace(_asked(one, options, longest), samples=samples), loaded))
    return LoadedSuite(suite.name, tuple(pairs))


def _asked(one: Benchmark, options: BenchmarkOptions, longest: int | None) -> Asked:
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
        sampled=options.sample or options.limit,
        seed=options.seed,
    )


def _loaded_tasks(options: BenchmarkOptions) -> LoadedSuite:
    names = as_list(options.tasks)
    manager = find_tasks(names, as_list(options.include_path))
    with stage("loading the questions of the tasks"):
        return LoadedSuite(OF_TASKS, tuple(_tasks(names, manager, options)))


def _tasks(
    names: Sequence[str], manager: Any, options: BenchmarkOptions
) -> Iterator[tuple[Asked, LoadedBenchmark]]:
    longest = options.max_new_tokens
    for name in names:
        loaded = load_benchmark(
            name,
            (name,),
            manager,
            shots=options.num_fewshot,
            sample=options.sample,
            limit=options.limit,
            seed=options.seed,
            settings={"max_gen_toks": longest} if longest else None,
        )
        known = {
            "prompt": "chat" if options.apply_chat_template else "plain",
            "shots": options.num_fewshot,
            "max_new_tokens": longest,
            "sampled": options.sample or options.limit,
            "seed": options.seed,
        }
        yield usual_asked(name, loaded, **known), loaded
