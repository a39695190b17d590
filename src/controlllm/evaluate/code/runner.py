"""Runs many programs at once, each in the time that its problem's reference asks for."""

import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from controlllm.common.errors import ConfigError
from controlllm.evaluate.code.checks import Walls, check_walls
from controlllm.evaluate.code.programs import Program
from controlllm.evaluate.code.sandbox import Outcome, run_program
from controlllm.evaluate.code.settings import SandboxSettings

__all__ = ["CodeRunner", "code_runner", "run_programs"]

_log = logging.getLogger(__name__)

_SECONDS_OF_A_REFERENCE = 120.0
_MOST_NAMED = 5
_Key = tuple[str, str, str]
_T = TypeVar("_T")


@dataclass(frozen=True)
class CodeRunner:
    """Called with programs, it returns what became of each. Equal programs run once.

    Raises:
        SandboxError: a program could not be run; nothing is known about it then.
    """

    walls: Walls
    """What stands between the programs and this machine."""
    settings: SandboxSettings
    """The bounds of each program."""
    references: dict[_Key, Outcome] = field(default_factory=dict, repr=False)
    """How the references of the problems went here; filled as problems come."""
    outcomes: dict[Program, Outcome] = field(default_factory=dict, repr=False)
    """What became of the programs so far: of two readings of an answer most are one program."""

    def __call__(self, programs: Sequence[Program]) -> list[Outcome]:
        """Run them, at most `settings.workers` at a time; outcomes come in their order."""
        new = [*dict.fromkeys(one for one in programs if one not in self.outcomes)]
        ran = run_programs(new, self.settings, self.walls.built, self.references)
        self.outcomes.update(zip(new, ran, strict=True))
        return [self.outcomes[one] for one in programs]


def code_runner(
    mode: Literal["strict", "unsafe"], settings: SandboxSettings | None = None
) -> CodeRunner:
    """What runs programs that a model wrote. The walls are tried first.

    Args:
        mode: `strict` refuses unless all walls stand; `unsafe` warns, and runs.
        settings: bounds of each program.

    Raises:
        ConfigError: another mode; walls that are missing, with what to do; this is no Linux.
        SandboxError: not even the processes can be started.
    """
    if mode not in ("strict", "unsafe"):
        raise ConfigError(f"code sandbox {mode!r}: it is 'strict' or 'unsafe'")
    settings = settings or SandboxSettings()
    walls = check_walls(settings)
    if mode == "strict":
        walls.require()
    elif not walls.stand:
        _log.warning("code that a model wrote runs without all walls: %s", walls.describe())
    return CodeRunner(walls, settings)


def run_programs(
    programs: Sequence[Program],
    settings: SandboxSettings,
    required: Collection[str] = (),
    references: dict[_Key, Outcome] | None = None,
) -> list[Outcome]:
    """Run programs, those of `settings.workers` at a time.

    The reference of each problem runs first, behind the same walls; a program may take
    `settings.factor` times as long, and `settings.seconds` in any case.

    Args:
        programs: solutions and tests.
        settings: bounds of each program.
        required: walls without which none is to run, by the names of `Walls.built`.
        references: outcomes of references from earlier calls; new ones are added.

    Returns:
        The outcomes, in the order of the programs.

    Raises:
        SandboxError: a program could not be run.
    """
    known = {} if references is None else references
    new = {_key(one): one for one in programs if one.reference and _key(one) not in known}
    right = [replace(one, solution=one.reference) for one in new.values()]
    most = max(_SECONDS_OF_A_REFERENCE, settings.seconds)
    ran = _in_parallel(lambda one: run_program(one, most, settings, required), right, settings)
    known |= dict(zip(new, ran, strict=True))
    _warn_of_failing({key: known[key] for key in new})

    def run(program: Program) -> Outcome:
        reference = known.get(_key(program))
        scaled = settings.factor * reference.seconds if reference and reference.passed else 0.0
        return run_program(program, max(settings.seconds, scaled), settings, required)

    return _in_parallel(run, programs, settings)


def _key(program: Program) -> _Key:
    """What the time of a reference depends on."""
    return program.task_id, program.reference, program.setup + program.tests


def _in_parallel(
    run: Callable[[Program], _T], programs: Sequence[Program], settings: SandboxSettings
) -> list[_T]:
    """Run all; the first error ends the rest."""
    pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="code")
    try:
        return list(pool.map(run, programs))
    finally:
        pool.shutdown(cancel_futures=True)


def _warn_of_failing(references: dict[_Key, Outcome]) -> None:
    """Name the problems that cannot be solved here: nobody's score is right on them."""
    failing = [(key[0], one) for key, one in references.items() if not one.passed]
    if failing:
        named = [f"{task} ({one.reason}: {one.detail})" for task, one in failing[:_MOST_NAMED]]
        _log.warning(
            "the references of %d of %d problems do not pass here: %s%s",
            len(failing), len(references), "; ".join(named),
            "; ..." if len(failing) > _MOST_NAMED else "",
        )  # fmt: skip
