"""The losses of one model on one set, document by document: models are compared on the same ones.

However documents are packed into batches, each is a unit of its own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import nn

from controlllm.common.errors import DataError
from controlllm.common.losses import cross_entropy_documents
from controlllm.common.text.progress import tick
from controlllm.data import Batch
from controlllm.evaluate.forgetting.losses import (
    documents_of,
    evaluating,
    model_logits,
    per_token,
    split_batch,
)
from controlllm.evaluate.statistics import Difference, paired_difference

__all__ = ["DocumentLosses", "measure_documents", "rise"]


@dataclass(frozen=True)
class DocumentLosses:
    """What a model lost on each document of a set.

    Attributes:
        sums: cross-entropy in nats, summed over the targets of each document.
        targets: how many targets each has.
    """

    sums: tuple[float, ...]
    targets: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean cross-entropy per target token, in nats (DataError: there is no target)."""
        return per_token(sum(self.sums), sum(self.targets))


def measure_documents(model: nn.Module, batches: Iterable[Batch]) -> DocumentLosses:
    """The losses of a model on each document of some batches that has targets.

    Raises:
        DataError: a batch has no labels.
    """
    sums: list[float] = []
    targets: list[int] = []
    with evaluating(model):
        for batch in batches:
            inputs, labels_BT = split_batch(batch)
            logits_BTV, documents_BT = model_logits(model, inputs), documents_of(batch)
            losses_D, counts_D = cross_entropy_documents(logits_BTV, labels_BT, documents_BT)
            sums += losses_D.tolist()
            targets += counts_D.tolist()
            tick()
    return DocumentLosses(tuple(sums), tuple(targets))


def rise(before: DocumentLosses, after: DocumentLosses) -> Difference:
    """How far the loss per token rose on the same documents, in nats, and how sure that is.

    A loss per token is a ratio of sums, so what a document contributes is how far its own sum lies
    from the whole's mean at its length (the linearised ratio estimator); they are independent.

    Where a sum is not finite, neither is known (nan).

    Raises:
        DataError: the documents are not the same.
    """
    if before.targets != after.targets:
        raise DataError(
            f"losses of {len(before.targets):,} and {len(after.targets):,} documents, or of such "
            "of other lengths, cannot be compared: both models must be asked the same."
        )
    if not np.isfinite([*before.sums, *after.sums]).all():  # One of the two has diverged.
        return Difference(math.nan, math.nan, len(before.targets), len(before.targets), math.nan)
    targets = np.asarray(before.targets, dtype=np.float64)
    risen = np.asarray(after.sums) - np.asarray(before.sums)
    mean = after.loss - before.loss
    apart = mean + (risen - mean * targets) * (len(targets) / targets.sum())
    return paired_difference(np.zeros_like(apart).tolist(), apart.tolist())
