"""The models of a report: each beside its base, benchmark by benchmark, with tests that count."""

from collections.abc import Sequence
from dataclasses import dataclass

from controlllm.common.errors import ConfigError, DataError
from controlllm.common.registry import check_choice
from controlllm.evaluate.items.comparison import Change, Reading, compare_models, pair
from controlllm.evaluate.items.records import READINGS, Evaluation
from controlllm.evaluate.judging.runs import Run
from controlllm.evaluate.statistics import holm

__all__ = ["Model", "Row", "compared_models", "deciding", "main_models", "primary"]


@dataclass(frozen=True)
class Row:
    """One benchmark of one model.

    Attributes:
        suite: where it is from.
        change: base and model on its items.
        p_values: McNemar's of each reading, by Holm's correction over all benchmarks of the model;
            None where there is no such test.
    """

    suite: str
    change: Change
    p_values: dict[str, float | None]


@dataclass(frozen=True)
class Model:
    """A model that was asked, with all that it was asked.

    Attributes:
        run: its run's name.
        label: in the evaluations of that run.
        name: what it is called in the report.
        alpha: of the dial; None = as trained.
        rows: its benchmarks.
    """

    run: str
    label: str
    name: str
    alpha: float | None
    rows: tuple[Row, ...]


def compared_models(runs: Sequence[Run]) -> tuple[Model, ...]:
    """All models but the bases, run by run.

    Raises:
        DataError: an evaluation has no base and trained model, or models were not asked the same;
            with the first difference.
    """
    _require_pairs(runs)
    return tuple(
        _model(run, label, label if len(runs) == 1 else f"{run.name} · {label}")
        for run in runs
        for label in _labels(run)
    )


def main_models(
    runs: Sequence[Run], models: Sequence[Model], label: str | None
) -> tuple[Model, ...]:
    """Of each run the model that the report speaks of first: "tuned", or the last one.

    Raises:
        ConfigError: a run has no model of that label (with the nearest).
    """
    found = []
    for run in runs:
        own = {model.label: model for model in models if model.run == run.name}
        if label is not None and own:
            check_choice("model", label, own)
        if own:
            wanted = label or ("tuned" if "tuned" in own else [*own][-1])
            found.append(own[wanted])
    if label is not None and not found:
        raise ConfigError(f"model={label!r}: no run has an evaluation.")
    return tuple(found)


def primary(change: Change) -> Reading | None:
    """The rate that speaks for a benchmark; bits per byte where there is none."""
    order = ("strict", "choice", "lenient", "bits_per_byte")
    return next((change.readings[name] for name in order if name in change.readings), None)


def deciding(change: Change) -> Reading | None:
    """The reading that the outcome came from; the primary one where nothing surely changed."""
    return primary(change) if change.decided_by is None else change.readings[change.decided_by]


def _labels(run: Run) -> list[str]:
    for evaluation in run.evaluations:
        if "base" not in evaluation.items or len(evaluation.items) < 2:
            raise DataError(
                f"{run.folder}: suite {evaluation.suite} was asked of "
                f"{', '.join(evaluation.items) or 'no model'} only: there is no base and trained "
                "model to compare. Evaluate both (--reference BASE where the model carries none)."
            )
    labels = [one.label for evaluation in run.evaluations for one in evaluation.models]
    return [label for label in dict.fromkeys(labels) if label != "base"]


def _model(run: Run, label: str, name: str) -> Model:
    asked = [one for one in run.evaluations if label in one.items]
    changes = [(one.suite, change) for one in asked for change in compare_models(one, label)]
    adjusted = _adjusted([change for _, change in changes])
    alpha = next(m.alpha for one in asked for m in one.models if m.label == label)
    rows = (Row(suite, change, p) for (suite, change), p in zip(changes, adjusted, strict=True))
    return Model(run.name, label, name, alpha, tuple(rows))


def _adjusted(changes: Sequence[Change]) -> list[dict[str, float | None]]:
    """p-values of each change by reading, corrected over all benchmarks.

    A benchmark that lacks a reading stands in its family with the test of its primary one, so that
    it counts as a question all the same.
    """
    found: list[dict[str, float | None]] = [dict.fromkeys(one.readings) for one in changes]
    for name in READINGS:
        tested = {
            number: reading.p_value
            for number, change in enumerate(changes)
            if (reading := change.readings.get(name, primary(change))) is not None
            and reading.p_value is not None
        }
        for number, p in zip(tested, holm([*tested.values()]), strict=True):
            if changes[number].readings.get(name) is not None:
                found[number][name] = p
    return found


def _require_pairs(runs: Sequence[Run]) -> None:
    """Several runs stand side by side only where their bases were asked the same."""
    first: dict[tuple[str, str], tuple[Run, Evaluation]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            for asked in evaluation.benchmarks:
                known = first.setdefault((evaluation.suite, asked.name), (run, evaluation))
                if known[0] is run or "base" not in evaluation.items:
                    continue
                try:
                    pair(known[1].of("base", asked.name), evaluation.of("base", asked.name))
                except DataError as error:
                    raise DataError(f"{known[0].name} and {run.name}: {error}") from error
