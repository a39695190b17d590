"""The losses of one model on one set, row by row, so that models are compared on the same rows."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import nn

from controlllm.common.errors import DataError
from controlllm.common.losses import cross_entropy_rows
from controlllm.common.text.progress import tick
from controlllm.data import Batch
from controlllm.evaluate.forgetting.losses import evaluating, model_logits, per_token, split_batch
from controlllm.evaluate.statistics import Difference, paired_difference

__all__ = ["RowLosses", "measure_rows", "rise"]


@dataclass(frozen=True)
class RowLosses:
    """What a model lost on each row of a set.

    Attributes:
        sums: cross-entropy in nats, summed over the targets of each row.
        targets: how many targets each row has.
    """

    sums: tuple[float, ...]
    targets: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean cross-entropy per target token, in nats (DataError: there is no target)."""
        return per_token(sum(self.sums), sum(self.targets))


def measure_rows(model: nn.Module, batches: Iterable[Batch]) -> RowLosses:
    """The losses of a model on each row of some batches; rows without targets are left out.

    Raises:
        DataError: a batch has no labels.
    """
    sums: list[float] = []
    targets: list[int] = []
    with evaluating(model):
        for batch in batches:
            inputs, labels_BT = split_batch(batch)
            losses_B, counts_B = cross_entropy_rows(model_logits(model, inputs), labels_BT)
            kept = counts_B > 0
            sums += losses_B[kept].tolist()
            targets += counts_B[kept].tolist()
            tick()
    return RowLosses(tuple(sums), tuple(targets))


def rise(before: RowLosses, after: RowLosses) -> Difference:
    """How far the loss per token rose on the same rows, in nats, and how sure that is.

    A loss per token is a ratio of sums, so what a row contributes is how far its own sum lies from
    the whole's mean at its length (the linearised ratio estimator); rows are independent.

    Raises:
        DataError: the rows are not the same.
    """
    if before.targets != after.targets:
        raise DataError(
            f"losses of {len(before.targets):,} and {len(after.targets):,} rows, or of rows of "
            "other lengths, cannot be compared: both models must be asked the same."
        )
    targets = np.asarray(before.targets, dtype=np.float64)
    risen = np.asarray(after.sums) - np.asarray(before.sums)
    mean = after.loss - before.loss
    apart = mean + (risen - mean * targets) * (len(targets) / targets.sum())
    return paired_difference(np.zeros_like(apart).tolist(), apart.tolist())
