"""`controlllm compare`: what several runs learned, forgot and took, in one table."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from controlllm.checkpoint import list_checkpoints, newest_checkpoint
from controlllm.checkpoint.models.inspection import inspect_folder
from controlllm.checkpoint.training.manifest import STATE
from controlllm.checkpoint.training.state import load_values
from controlllm.cli.kit.parsing import parse_options
from controlllm.common.errors import CheckpointError, ConfigError, ControlLLMError
from controlllm.common.storage.files import require_writable, write_json
from controlllm.common.text.tables import format_table
from controlllm.evaluate.forgetting.retention import worst
from controlllm.train.config.run_config import RunConfig

__all__ = ["CompareOptions", "RunSummary", "run", "summary_of"]


@dataclass
class CompareOptions:
    """Compare runs by what their newest checkpoints say; nothing is trained or loaded."""

    folder: str
    """A run folder, or a folder of run folders."""
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


class NoBestStepError(ConfigError):
    """The best step is asked for, and a run has none."""


def run(argv: list[str]) -> None:
    """Print the table."""
    options = parse_options(CompareOptions, argv, "compare")
    if options.output is not None:
        require_writable(options.output)
    runs = []
    for folder in _run_folders(Path(options.folder)):
        try:
            runs.append(summary_of(folder, options.best))
        except NoBestStepError as error:
            print(f"left out: {error}")
    if not runs:
        raise CheckpointError(f"no run in {options.folder} can be compared.")
    runs.sort(key=lambda row: (row.learn_loss is None, worst([row.learn_loss or 0.0])))
    rows = [asdict(row) | {"learning_rate": f"{row.learning_rate:g}"} for row in runs]
    headers = [_HEADERS.get(name, name) for name in rows[0]]
    print(format_table(headers, [list(row.values()) for row in rows]))
    if options.output is not None:
        write_json(options.output, [asdict(row) for row in runs])


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


def _summary(run: RunConfig, checkpoint: Path, best: bool) -> RunSummary:
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
