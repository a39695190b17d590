"""What a run folder holds that a judge reads: evaluations, losses in time, the dial, texts.

RUN/evaluations/SUITE/     evaluations, one folder each (`items.records`)
RUN/benchmarks/step-N/     those that training made; the newest counts where there is no other
RUN/checkpoint-N/          its history: losses of the held-out sets
RUN/calibrated/            `calibration.json`: the dial's curve
RUN/samples/*.jsonl        texts that were written while it trained
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from controlllm.checkpoint.training.checkpoints import list_checkpoints
from controlllm.checkpoint.training.manifest import STATE
from controlllm.common.errors import CheckpointError, ConfigError, DataError
from controlllm.common.storage.files import read_json
from controlllm.common.text.secrets import redacted
from controlllm.common.text.yamls import MAX_BYTES, parse_yaml
from controlllm.evaluate.items.records import Evaluation
from controlllm.evaluate.judging.curve import read_calibration

__all__ = [
    "Run",
    "SampleText",
    "asked_in_training",
    "find_evaluations",
    "read_evaluations",
    "read_run",
    "read_runs",
]

EVALUATION, EVALUATIONS, BENCHMARKS = "evaluation.json", "evaluations", "benchmarks"
MOST_STATE = 2**28
MOST_SAMPLES = 2**24
"""Bytes of a file that is read."""


@dataclass(frozen=True)
class SampleText:
    """What base and model wrote to one prompt while the run trained."""

    prompt: str
    reference: str
    base: str | None
    tuned: str


@dataclass(frozen=True)
class Run:
    """A run as it is judged.

    Attributes:
        name: its folder's; of several runs no two have the same.
        folder: where it is.
        evaluations: one for each suite.
        note: that they were made in training, if so.
        history: rows of `step` and the metrics of held-out sets, losses and texts.
        calibration: the dial's curve as `calibration.json` has it; None where there is none.
        samples: texts of the newest step that has some, by the name of their set.
        unread: how many rows of these files have other fields.
        config: the run's settings as text; empty where there are none.
    """

    name: str
    folder: Path
    evaluations: tuple[Evaluation, ...] = ()
    note: str = ""
    history: tuple[dict[str, float], ...] = ()
    calibration: dict[str, Any] | None = None
    samples: dict[str, tuple[SampleText, ...]] = field(default_factory=dict)
    unread: int = 0
    config: str = ""


def find_evaluations(folder: str | Path) -> tuple[Evaluation, ...]:
    """The evaluations of a run or of one of its checkpoints, or those in the folder itself.

    Raises:
        DataError: one is damaged, or a reading is no number.
        ConfigError: what compares them is not installed.
    """
    evaluations = tuple(_evaluations(Path(folder)))
    if evaluations:
        try:
            import scipy.stats  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"comparing models needs scipy, which cannot be imported ({error}): "
                "`pip install 'controlllm[eval]'`."
            ) from error
    return evaluations


def asked_in_training(folder: str | Path) -> str:
    """What to say of a run whose only evaluations are those of its training; else nothing."""
    found = _places(Path(folder))
    place = found[0].parent.parent if found else None
    if place is None or place.parent != Path(folder) / BENCHMARKS:
        return ""
    return f"{folder} was evaluated in training only; its newest step is read: {place}"


def read_evaluations(folder: str | Path) -> tuple[Evaluation, ...]:
    """The evaluations of a run; see `find_evaluations`.

    Raises:
        DataError: there is none, one is damaged, or a reading is no number.
    """
    evaluations = find_evaluations(folder)
    if not evaluations:
        raise DataError(
            f"{folder} holds no evaluation: run `controlllm eval {folder} --suite NAME` first."
        )
    return evaluations


def read_runs(folders: Sequence[str | Path]) -> tuple[Run, ...]:
    """Read several runs; see `read_run`.

    Raises:
        DataError: one holds nothing to judge or is damaged, or they have no base in common.
    """
    paths = [Path(folder) for folder in folders]
    names = [path.resolve().name or str(path) for path in paths]
    if len({*names}) < len(names):
        names = [str(path) for path in paths]
    if len({*names}) < len(names):
        raise DataError(f"a run is named twice: {', '.join(names)}.")
    runs = tuple(read_run(path, name) for path, name in zip(paths, names, strict=True))
    _require_one_base(runs)
    return runs


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """Read all of a run but its weights.

    Raises:
        DataError: it holds nothing to judge, or an evaluation is damaged.
        CheckpointError: another file is damaged.
        ConfigError: its settings are no YAML.
    """
    folder = Path(folder)
    samples, unread = _samples(folder)
    run = Run(
        name=name or folder.resolve().name,
        folder=folder,
        evaluations=find_evaluations(folder),
        note=asked_in_training(folder),
        history=tuple(_history(folder)),
        calibration=read_calibration(folder),
        samples=samples,
        unread=unread,
        config=_config(folder),
    )
    if not (run.evaluations or run.history or run.calibration):
        read_evaluations(folder)  # Says what to do.
    return run


def _evaluations(folder: Path) -> Iterator[Evaluation]:
    for path in _places(folder):
        yield Evaluation.load(path.parent)


def _places(folder: Path) -> list[Path]:
    """The evaluation in a folder, those of a run or of a checkpoint, or those right below it."""
    if (folder / EVALUATION).is_file():
        return [folder / EVALUATION]
    of_a_checkpoint = folder.resolve().parent / EVALUATIONS / folder.resolve().name
    in_training = [path for _, path in sorted(_steps(folder / BENCHMARKS), reverse=True)]
    for place in (folder / EVALUATIONS, of_a_checkpoint, folder, *in_training):
        found = [
            path
            for path in sorted(place.glob(f"*/{EVALUATION}"))
            if not path.parent.name.startswith(".")  # being written
        ]
        if found:
            return found
    return []


def _require_one_base(runs: Sequence[Run]) -> None:
    """Runs stand side by side only where one base was asked, by its identity."""
    known: dict[str, tuple[str, dict[str, str]]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            base = next((one for one in evaluation.models if one.label == "base"), None)
            if base is None or not base.identity:
                continue
            other, identity = known.setdefault(evaluation.suite, (run.name, base.identity))
            for key in sorted(identity.keys() | base.identity.keys()):
                if identity.get(key) != base.identity.get(key):
                    raise DataError(
                        f"{other} and {run.name} have no base in common: {key} is "
                        f"{identity.get(key)} and {base.identity.get(key)} (suite "
                        f"{evaluation.suite}). Make one report for each base."
                    )


def _history(folder: Path) -> Iterator[dict[str, float]]:
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return
    path = checkpoints[-1] / STATE
    values = read_json(path, MOST_STATE)
    rows = values.get("history") if isinstance(values, dict) else None
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and _is_number(row.get("step")):
            sets = ("learn/", "retain/", "generation/")
            kept = {k: float(v) for k, v in row.items() if k.startswith(sets) and _is_number(v)}
            if kept:
                yield {"step": float(row["step"]), **kept}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _config(folder: Path) -> str:
    """The settings without secrets, which somebody may have written into them by hand."""
    path = folder / "config.yaml"
    try:
        with path.open("rb") as file:
            values = parse_yaml(file.read(MAX_BYTES + 1), str(path))
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    return yaml.safe_dump(redacted(values), sort_keys=False, allow_unicode=True)


def _samples(folder: Path) -> tuple[dict[str, tuple[SampleText, ...]], int]:
    steps = _steps(folder / "generation")
    samples, unread = {}, 0
    for path in sorted(max(steps)[1].glob("*.jsonl")) if steps else ():
        with path.open("rb") as file:
            lines = file.read(MOST_SAMPLES).splitlines()
        texts = [_sample(line) for line in lines]
        unread += texts.count(None)
        if kept := tuple(text for text in texts if text is not None):
            samples[f"{path.stem}, {path.parent.name}"] = kept
    return samples, unread


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """The folders of steps of training in one, unsorted."""
    return [
        (int(found[1]), path)
        for path in folder.glob("step-*")
        if (found := re.fullmatch(r"step-([0-9]{1,12})", path.name))
    ]


def _sample(line: bytes) -> SampleText | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    prompt, reference, tuned = (row.get(name) for name in ("prompt", "reference", "tuned"))
    base = row.get("base")
    if not (isinstance(prompt, str) and isinstance(reference, str) and isinstance(tuned, str)):
        return None
    return SampleText(prompt, reference, base, tuned) if isinstance(base, str | None) else None
