"""The matrix of a sequence for people and for programs."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from controlllm.common.text.tables import format_number, format_table
from controlllm.evaluate.forgetting.retention import RetentionReport
from controlllm.evaluate.sequence.matrix import SequenceMatrix
from controlllm.evaluate.statistics import Difference
from controlllm.expansion.files.records import BASE

__all__ = ["Kept", "kept_table", "matrix_record", "matrix_table", "numbers_table"]

Kept = Mapping[str, Mapping[str, RetentionReport]]
"""By stage after the base, then by set: what became of what the base knew."""

_MEANING = {
    "BWT": "later stages did this to earlier tasks (below 0: forgotten)",
    "FWT": "earlier stages did this for a task before it was learned",
    "F": "earlier tasks fell by this from their best (0: nothing forgotten)",
    "intransigence": "less was learned of each task than by all at once",
}


def matrix_table(matrix: SequenceMatrix) -> str:
    """Losses in nats per token: a row for the base and for each stage, a column for each task."""
    rows: list[list[object]] = [
        [
            f"after {stage}" if stage != BASE else BASE,
            *(matrix.loss(stage, t) for t in matrix.tasks),
        ]
        for stage in matrix.losses
    ]
    if matrix.joint is not None:
        rows.append(["all at once", *(matrix.joint[task].loss for task in matrix.tasks)])
    return format_table(["loss", *matrix.tasks], rows)


def kept_table(kept: Kept) -> str:
    """How far the base's own sets rose, and KL(base || stage), for each stage."""
    rows = [
        [f"after {stage}", name, format_number(report.forgetting, signed=True), report.kl]
        for stage, reports in kept.items()
        for name, report in reports.items()
    ]
    return format_table(["", "what the base knew", "loss rose by", "KL(base || stage)"], rows)


def numbers_table(matrix: SequenceMatrix) -> str:
    """ACC, BWT, FWT, F and intransigence, in nats per token, with 95 % intervals."""
    rows: list[list[object]] = [
        ["ACC", format_number(matrix.accuracy), "-", "the mean loss in the end, negative"]
    ]
    for name, found in _numbers(matrix).items():
        if found is not None:
            inside = found.interval()
            between = " to ".join(format_number(x, signed=True) for x in (inside.low, inside.high))
            rows.append([name, format_number(found.mean, signed=True), between, _MEANING[name]])
    return format_table(["", "nats per token", "95 %", "what it says"], rows)


def matrix_record(matrix: SequenceMatrix, kept: Kept) -> dict[str, Any]:
    """All of it as plain values for JSON; what is not finite is None."""
    numbers = {
        name: None if found is None else found.interval().to_dict()
        for name, found in _numbers(matrix).items()
    }
    joint = matrix.joint
    record = {
        "tasks": matrix.tasks,
        "losses": {s: {t: matrix.loss(s, t) for t in matrix.tasks} for s in matrix.losses},
        "joint": None if joint is None else {task: joint[task].loss for task in matrix.tasks},
        "targets": {task: sum(row.targets) for task, row in matrix.losses[BASE].items()},
        "ACC": matrix.accuracy,
        **numbers,
        "kept": {
            stage: {
                name: asdict(report) | {"forgetting": report.forgetting}
                for name, report in reports.items()
            }
            for stage, reports in kept.items()
        },
    }
    return {name: _finite(value) for name, value in record.items()}


def _finite(value: Any) -> Any:
    """A value, or a mapping of such, with None for floats that JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(matrix: SequenceMatrix) -> dict[str, Difference | None]:
    return {
        "BWT": matrix.backward_transfer,
        "FWT": matrix.forward_transfer,
        "F": matrix.forgetting,
        "intransigence": matrix.intransigence,
    }
