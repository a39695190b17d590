"""Every stage of a sequence on every task, one model at a time beside the base."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from controlllm.common.text.progress import progress
from controlllm.data import Batch
from controlllm.evaluate.forgetting.reference import Reference
from controlllm.evaluate.forgetting.retention import RetentionReport, measure_retention
from controlllm.evaluate.sequence.documents import DocumentLosses, measure_documents
from controlllm.evaluate.sequence.matrix import SequenceMatrix
from controlllm.expansion.files.records import BASE

__all__ = ["Loader", "measure_sequence"]

Loader = Callable[[], nn.Module]
"""Loads a model when it is its turn: models of a sequence need not fit side by side."""
Sets = Mapping[str, Sequence[Batch]]


def measure_sequence(
    base: nn.Module,
    stages: Mapping[str, Loader],
    tasks: Sets,
    kept: Sets,
    joint: Loader | None = None,
) -> tuple[SequenceMatrix, dict[str, dict[str, RetentionReport]]]:
    """Measure the base and each stage on each task, and each stage on what the base knew.

    Args:
        base: the model that the first stage began from.
        stages: what loads each stage, by the name of the task that it learned, the first one first.
        tasks: held-out batches of each task, in the order of the stages.
        kept: batches of what the base knew, by the name of the set.
        joint: what loads a model that learned all tasks at once.

    Returns:
        The matrix, and what became of what the base knew, by stage and set.

    Raises:
        ConfigError: stages and tasks are not the same.
        DataError: a set has no target token.
    """
    losses = {BASE: _measured(base, tasks, BASE)}
    reports: dict[str, dict[str, RetentionReport]] = {}
    for stage, load in stages.items():
        model = load()
        losses[stage] = _measured(model, tasks, f"after {stage}")
        reference = Reference(model, copy=base)
        with progress(f"after {stage}: what the base knew", "batches", _batches(kept)):
            reports[stage] = {
                name: measure_retention(model, batches, reference) for name, batches in kept.items()
            }
        del model, reference
    together = None if joint is None else _measured(joint(), tasks, "all at once")
    return SequenceMatrix(losses, together), reports


def _measured(model: nn.Module, tasks: Sets, told: str) -> dict[str, DocumentLosses]:
    with progress(f"{told}: the tasks", "batches", _batches(tasks)):
        return {task: measure_documents(model, batches) for task, batches in tasks.items()}


def _batches(sets: Sets) -> int:
    return sum(map(len, sets.values()))
