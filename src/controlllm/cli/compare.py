"""`controlllm compare`: what several runs learned, forgot and took, in one table.

Where runs were evaluated, a second table shows what became of each benchmark.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from controlllm.checkpoint import list_checkpoints, newest_checkpoint
from controlllm.checkpoint.models.inspection import inspect_folder
from controlllm.checkpoint.training.manifest import STATE
from controlllm.cli.kit.parsing import parse_options
from controlllm.common.errors import CheckpointError, ConfigError, ControlLLMError, DataError
from controlllm.common.storage.files import read_json, require_writable, write_json
from controlllm.common.text.tables import format_number, format_table
from controlllm.evaluate.judging.models import compared_models, deciding, main_models
from controlllm.evaluate.judging.runs import Run, asked_in_training, find_evaluations
from controlllm.train.config.run_config import RunConfig

__all__ = ["BenchmarkSummary", "CompareOptions", "RunSummary", "benchmarks_of", "run", "summary_of"]


@dataclass
class CompareOptions:
    """Compare runs by what their newest checkpoints say; nothing is trained or loaded."""

    runs: list[str]
    """Run folders, or folders of run folders."""
    best: bool = False
    """Losses of the best step within the run's budget (training.max_forgetting), not the last."""
    output: str | None = None
    """JSON file to write the numbers to."""


@dataclass(frozen=True)
class RunSummary:
    """One run, as its newest checkpoint tells it.

    Attributes:
        name: its folder's.
        method: how it learns.
        adapters: the type of its adapters, if it has any.
        learning_rate: its peak.
        step: the step that the losses are of.
        learn_loss: mean of the learn sets' losses, nats per token; None without learn sets.
        gain: how much that is below the base's.
        forgetting: the largest rise of a retain set's loss, inf where one is not a number; None
            without retain sets.
        kl: the largest KL(base || model) of a retain set, likewise.
        trained: parameters that train.
        tokens: real tokens trained on until the newest checkpoint.
        seconds: time of the training steps until then.
    """

    name: str
    method: str
    adapters: str | None
    learning_rate: float
    step: int
    learn_loss: float | None
    gain: float | None
    forgetting: float | None
    kl: float | None
    trained: int
    tokens: int
    seconds: float


_HEADERS = {
    **{"name": "run", "learning_rate": "lr", "learn_loss": "mean learn loss"},
    **{"gain": "mean gain", "forgetting": "worst forgetting", "kl": "worst KL"},
}
"""What columns are called, if not as the field."""


@dataclass(frozen=True)
class BenchmarkSummary:
    """One benchmark of a run, by the reading that decided, or its first one.

    Attributes:
        suite: where it is from.
        benchmark: its name.
        model: label of the trained model.
        outcome: gained, kept, format lost or knowledge lost.
        reading: its name (`controlllm.evaluate.READINGS`).
        base: the base's value.
        value: the model's.
        difference: value minus base.
        low: where the 95 % interval of the difference begins.
        high: where it ends.
        p_value: exact McNemar, corrected over the run's benchmarks; None where there is no test.
        reason: why the outcome is what it is.
    """

    suite: str
    benchmark: str
    model: str
    outcome: str
    reading: str
    base: float
    value: float
    difference: float
    low: float
    high: float
    p_value: float | None
    reason: str


class NoBestStepError(ConfigError):
    """The best step is asked for, and a run has none."""


def run(argv: list[str]) -> None:
    """Print the table."""
    options = parse_options(CompareOptions, argv, "compare")
    if options.output is not None:
        require_writable(options.output)
        _refuse_foreign(options.output)
    found: list[tuple[RunSummary, tuple[BenchmarkSummary, ...]]] = []
    for folder in (each for given in options.runs for each in _run_folders(Path(given))):
        try:
            summary = summary_of(folder, options.best)
        except NoBestStepError as error:
            print(f"left out: {error}")
            continue
        found.append((summary, _benchmarks_or_why_not(folder)))
    if not found:
        raise CheckpointError(f"no run in {', '.join(options.runs)} can be compared.")
    from controlllm.evaluate.forgetting.retention import worst

    found.sort(key=lambda pair: (pair[0].learn_loss is None, worst([pair[0].learn_loss or 0.0])))
    rows = [asdict(run) | {"learning_rate": f"{run.learning_rate:g}"} for run, _ in found]
    headers = [_HEADERS.get(name, name) for name in rows[0]]
    print(format_table(headers, [list(row.values()) for row in rows]))
    benchmarks = [(run.name, one) for run, several in found for one in several]
    if benchmarks:
        print(f"\n{_benchmark_table(benchmarks)}")
    if options.output is not None:
        more = [{"benchmarks": [asdict(one) for one in each]} if each else {} for _, each in found]
        told = [asdict(run) | each for (run, _), each in zip(found, more, strict=True)]
        write_json(options.output, told)


def _refuse_foreign(output: str) -> None:
    """Check that no file is replaced but the numbers of an earlier comparison (ConfigError)."""
    if not Path(output).is_file():
        return
    ours = {field.name for field in fields(RunSummary)}
    with suppress(CheckpointError, TypeError):
        rows = read_json(output)
        if rows and all(ours <= {*one} for one in rows):
            return
    raise ConfigError(f"output={output!r} exists and is no comparison of ours; name another file.")


def _benchmarks_or_why_not(folder: Path) -> tuple[BenchmarkSummary, ...]:
    if note := asked_in_training(folder):
        print(note)
    try:
        return benchmarks_of(folder)
    except DataError as error:
        print(f"benchmarks left out: {error}")
        return ()


def summary_of(folder: Path, best: bool = False) -> RunSummary:
    """What a run learned, forgot and took, by its newest checkpoint.

    Raises:
        CheckpointError: it has no whole checkpoint, or one that is no run's.
        NoBestStepError: the best step is asked for, and there is none.
        ConfigError: its config is no run's.
    """
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise CheckpointError(f"{folder} holds no whole checkpoint; train it to its end first.")
    run = RunConfig.from_yaml(folder / "config.yaml")
    try:
        return _summary(run, checkpoint, best)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ControlLLMError):
            raise
        raise CheckpointError(
            f"{checkpoint / STATE} does not hold the record of a run ({type(error).__name__}: "
            f"{error})."
        ) from error


def benchmarks_of(folder: Path) -> tuple[BenchmarkSummary, ...]:
    """What became of each benchmark that a run was asked; none where it was not evaluated.

    Raises:
        DataError: an evaluation is damaged, or its models were not asked the same.
    """
    evaluations = find_evaluations(folder)
    if not evaluations:
        return ()
    run = Run(folder.name, folder, evaluations)
    (model,) = main_models([run], compared_models([run]), None)
    return tuple(
        BenchmarkSummary(
            suite=row.suite,
            benchmark=row.change.benchmark.name,
            model=model.label,
            outcome=row.change.outcome.value,
            reading=reading.name,
            base=reading.base,
            value=reading.value,
            difference=reading.difference.mean,
            low=reading.difference.interval().low,
            high=reading.difference.interval().high,
            p_value=row.p_values[reading.name],
            reason=row.change.reason,
        )
        for row in model.rows
        if (reading := deciding(row.change)) is not None
    )


def _benchmark_table(rows: Sequence[tuple[str, BenchmarkSummary]]) -> str:
    headers = ["run", "model", "suite", "benchmark", "outcome", "reading", "base", "value"]
    headers += ["difference", "95 % interval", "p (Holm)", "why"]
    cells = [
        [
            *(run, one.model, one.suite, one.benchmark, one.outcome, one.reading),
            *(one.base, one.value, format_number(one.difference, signed=True)),
            f"{format_number(one.low, signed=True)} to {format_number(one.high, signed=True)}",
            one.p_value,
            one.reason,
        ]
        for run, one in rows
    ]
    return format_table(headers, cells)


def _summary(run: RunConfig, checkpoint: Path, best: bool) -> RunSummary:
    from controlllm.checkpoint.training.state import load_values
    from controlllm.evaluate.forgetting.retention import worst

    folder, state = checkpoint.parent, load_values(checkpoint)
    progress = state.extra["progress"]
    if best and progress["best"] is None:
        raise NoBestStepError(
            f"{folder} has no best step: no learn set, no step within its budget, or losses that "
            "are not numbers."
        )
    step, measured = _measured(state.history, progress["best"]["step"] if best else None)
    losses = _values(measured, "learn", "loss")
    gains = _values(measured, "learn", "gain")
    forgetting, kl = (_values(measured, "retain", what) for what in ("forgetting", "kl"))
    return RunSummary(
        name=folder.name,
        method=run.method,
        adapters=run.adapters,
        learning_rate=run.training.learning_rate,
        step=step,
        learn_loss=sum(losses) / len(losses) if losses else None,
        gain=sum(gains) / len(gains) if gains else None,
        forgetting=worst(forgetting) if forgetting else None,
        kl=worst(kl) if kl else None,
        trained=inspect_folder(checkpoint).total.trained,
        tokens=progress["tokens"],
        seconds=progress["seconds"],
    )


def _run_folders(folder: Path) -> Iterator[Path]:
    """The folder itself if it is a run's, else the run folders in it."""
    found = [p for p in (folder, *sorted(folder.glob("*"))) if (p / "config.yaml").is_file()]
    if not found:
        raise CheckpointError(f"{folder} is no run folder and holds none.")
    for path in found[:1] if found[0] == folder else found:
        if list_checkpoints(path):
            yield path
        else:
            print(f"left out: {path} has no checkpoint")


def _measured(history: list[dict[str, Any]], step: int | None) -> tuple[int, dict[str, Any]]:
    """The last measurement, or that of a step; (newest step, nothing) where there is none."""
    rows = [row for row in history if any(key.startswith(("learn/", "retain/")) for key in row)]
    rows = [row for row in rows if step is None or row["step"] == step]
    if rows:
        return rows[-1]["step"], rows[-1]
    return (history[-1]["step"] if history else 0), {}


def _values(row: dict[str, Any], kind: str, what: str) -> list[float]:
    """A number of each set of a kind."""
    named = ((key, value) for key, value in row.items() if key.startswith(f"{kind}/"))
    return [float(value) for key, value in named if key.endswith(f"/{what}")]
