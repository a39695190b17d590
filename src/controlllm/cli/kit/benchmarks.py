"""Benchmarks of a verb: suites and single tasks, found and loaded before any model is."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from controlllm.cli.kit.parsing import as_list
from controlllm.cli.kit.sets import CONFIG, as_numbers
from controlllm.common.errors import ConfigError, DataError
from controlllm.common.facts import check_values, setting
from controlllm.common.registry import nearest
from controlllm.common.settings import RUNS_CODE, TINY, Rule
from controlllm.common.storage.files import require_writable
from controlllm.common.storage.lock import own_folder
from controlllm.common.text.progress import stage
from controlllm.evaluate.suites import Suite, load_suite

if TYPE_CHECKING:
    from controlllm.evaluate import Evaluation, Grader, LoadedSuite

__all__ = [
    "OF_BENCHMARKS",
    "BenchmarkOptions",
    "folder_of",
    "graders_of",
    "loaded_suites",
    "require_places",
    "save_evaluation",
    "store_of",
]

log = logging.getLogger(__name__)


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
        return as_numbers("pass_at", self.pass_at, int)

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


def loaded_suites(options: BenchmarkOptions) -> "list[LoadedSuite]":
    """Find and load everything that is asked.

    Raises:
        ConfigError: a suite, benchmark or task is not known (with the nearest name), or something
            is missing on this machine (with what to do).
        DataError: documents cannot be loaded.
    """
    from controlllm.evaluate import Draw, available, find_tasks, load_questions, load_tasks

    draw = Draw(
        options.sample,
        options.limit,
        options.seed,
        options.max_new_tokens,
        options.code_samples,
        options.code_temperature,
    )
    suites = [load_suite(name, options.suite_dir) for name in as_list(options.suite)]
    chosen = _chosen(suites, as_list(options.benchmarks))
    chosen = [available(suite, options.data_dir, options.skip_missing) for suite in chosen]
    names, folders = as_list(options.tasks), as_list(options.include_path)
    manager = find_tasks(names, folders) if names else None
    loaded = []
    for suite in chosen:
        with stage(f"loading the questions of {suite.name}"):
            loaded.append(load_questions(suite, options.data_dir, draw, folders))
    if names:
        with stage("loading the questions of the tasks"):
            shots, chat = options.num_fewshot, options.apply_chat_template
            loaded.append(load_tasks(names, manager, draw, shots, chat))
    return loaded


def graders_of(options: BenchmarkOptions, suites: "Sequence[LoadedSuite]") -> "dict[str, Grader]":
    """What runs and grades programs, if there are any and that is asked for. Walls are tried.

    Raises:
        ConfigError: walls are missing, with what to do.
    """
    code = [name for suite in suites for name in suite.of_kind("code")]
    if not code:
        return {}
    if not options.runs_code:
        log.warning(
            "%s: programs are not run, so only the likelihood of right ones is read; run them by "
            "--code_sandbox strict.",
            ", ".join(code),
        )
        return {}
    from controlllm.evaluate import code_grader
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


def save_evaluation(found: "Evaluation", folder: Path) -> None:
    """Write an evaluation; an earlier one that asked something else is put aside, and told.

    So is one that cannot be read any more.
    """
    from controlllm.evaluate import Evaluation

    try:
        takes_place = not folder.exists() or Evaluation.load(folder).is_like(found)
    except DataError:
        takes_place = not any(folder.iterdir())
    if not takes_place:
        earlier, number = folder.parent / "earlier", 1
        while (aside := earlier / f"{folder.name}-{number}").exists():
            number += 1
        earlier.mkdir(exist_ok=True)
        folder.rename(aside)
        log.warning(
            "The evaluation that was in %s asked something else: it is in %s.", folder, aside
        )
    found.save(folder)


def require_places(options: BenchmarkOptions, model: str) -> None:
    """Check before long work that results and answers can be written.

    Raises:
        CheckpointError: where results go, or the store, can be no folder that is written to.
        ConfigError: others may write to the store.
    """
    require_writable(folder_of(options, model), folder=True)
    store = store_of(options).expanduser()
    if store.is_dir():
        own_folder(store, "--store")
    else:
        require_writable(store, folder=True)


def store_of(options: BenchmarkOptions) -> Path:
    """The folder of all answers."""
    from controlllm.evaluate import default_store

    return Path(options.store) if options.store else default_store()


def _chosen(suites: Sequence[Suite], names: Sequence[str]) -> list[Suite]:
    """The suites with only the named benchmarks."""
    if not names:
        return list(suites)
    known = {one.name for suite in suites for one in suite.benchmarks}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"benchmarks={unknown} are in no suite; there are: {sorted(known)}."
            f"{nearest(unknown[0], known)}"
        )
    return [
        replace(suite, benchmarks=kept)
        for suite in suites
        if (kept := tuple(one for one in suite.benchmarks if one.name in names))
    ]
