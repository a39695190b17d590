"""An evaluation as tables for a terminal or a page of Markdown."""

from dataclasses import asdict
from typing import Any

from controlllm.common.text.tables import format_number, format_table
from controlllm.evaluate.items.comparison import compare_models
from controlllm.evaluate.items.records import READINGS, Evaluation, finite_score

__all__ = ["numbers_of", "readings_table", "scores_table"]

NAMES = {"bits_per_byte": "bits per byte"}


def readings_table(evaluation: Evaluation) -> str:
    """One row per benchmark, model and reading: base, model, difference with its interval.

    The outcome and the reason for it stand in the row of the reading that decided, or in the first.
    Without a base there is no difference, and each model has its own value only.
    """
    labels = [model.label for model in evaluation.models]
    if labels[0] != "base":
        return _alone(evaluation, labels)
    headers = ["benchmark", "model", "reading", "n", "base", "model's", "difference"]
    headers += ["95 % of difference", "McNemar's p", "outcome", "why"]
    rows: list[list[object]] = []
    for label in labels[1:]:
        for change in compare_models(evaluation, label):
            decided_by = change.decided_by or next(iter(change.readings), None)
            for reading in change.readings.values():
                decided = reading.name == decided_by
                interval = reading.difference.interval()
                told = interval.high - interval.low < float("inf")
                rows.append(
                    [
                        change.benchmark.name,
                        label,
                        _named(reading.name),
                        reading.difference.num_items,
                        reading.base,
                        reading.value,
                        format_number(reading.difference.mean, signed=True),
                        f"{interval.low:+.3f} to {interval.high:+.3f}" if told else None,
                        reading.p_value,
                        str(change.outcome) if decided else "",
                        change.reason if decided else "",
                    ]
                )
    return format_table(headers, rows)


def scores_table(evaluation: Evaluation) -> str:
    """lm-eval's own values of tasks and groups, one column for each model."""
    labels = [model.label for model in evaluation.models]
    values: dict[tuple[str, str], dict[str, float | None]] = {}
    for row in evaluation.scores:
        values.setdefault((row["task"], row["metric"]), {})[row["model"]] = row["value"]
    rows = [[*key, *(found.get(label) for label in labels)] for key, found in values.items()]
    return format_table(["task", "metric of lm-eval", *labels], rows)


def numbers_of(found: Evaluation) -> dict[str, Any]:
    """What both models did to a suite, ready for JSON: everything but the items."""
    labels = [subject.label for subject in found.models]
    changes = [
        {
            "benchmark": change.benchmark.name,
            "model": label,
            "outcome": str(change.outcome),
            "reason": change.reason,
            "decided_by": change.decided_by,
            "readings": {name: asdict(one) for name, one in change.readings.items()},
        }
        for label in labels[1:]
        if labels[0] == "base"
        for change in compare_models(found, label)
    ]
    return {
        "changes": changes,
        "scores": [*map(finite_score, found.scores)],
        "provenance": found.provenance,
    }


def _alone(evaluation: Evaluation, labels: list[str]) -> str:
    rows: list[list[object]] = []
    for asked in evaluation.benchmarks:
        for label in labels:
            items = evaluation.of(label, asked.name)
            for name in READINGS:
                read = [value for item in items if (value := item.reading(name)) is not None]
                if read:
                    rows.append([asked.name, label, _named(name), len(read), sum(read) / len(read)])
    return format_table(["benchmark", "model", "reading", "n", "value"], rows)


def _named(reading: str) -> str:
    name = NAMES.get(reading, reading)
    return f"{name} {'↑' if READINGS[reading] else '↓'}"
