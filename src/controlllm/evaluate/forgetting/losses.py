"""The loss of a model on a set of batches: every target token counted once."""

import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from controlllm.common.distributed import ALONE, Ranks
from controlllm.common.errors import DataError
from controlllm.common.losses import IGNORE_INDEX, target_log_probs, target_nll
from controlllm.common.text.progress import tick
from controlllm.data import Batch, model_inputs
from controlllm.evaluate.forgetting.expanded import recording_alpha, unrecorded

__all__ = [
    "LossReport",
    "deal",
    "documents_of",
    "evaluate_losses",
    "evaluating",
    "model_logits",
    "per_token",
    "perplexity",
    "split_batch",
    "warn_if_not_finite",
]

_LARGEST_EXPONENT = math.log(sys.float_info.max)


@dataclass(frozen=True)
class LossReport:
    """The loss on one set.

    Attributes:
        loss: mean cross-entropy per target token, in nats.
        tokens: how many target tokens were counted.
    """

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """`exp(loss)`."""
        return perplexity(self.loss)


def evaluate_losses(model: nn.Module, batches: Iterable[Batch], ranks: Ranks = ALONE) -> LossReport:
    """The token mean of the cross-entropy over all batches.

    The mean alpha of an expanded model's token gates is recorded in its config on the way.

    Args:
        model: any causal language model of transformers; its training mode is restored.
        batches: padded or packed batches with `labels`.
        ranks: processes that share the model, each with all batches: they deal them out. Collective
            then.

    Raises:
        DataError: if there is no target token in any batch.
    """
    total, tokens = 0.0, 0.0
    with evaluating(model), recording_alpha(model, ranks):
        for batch in deal(batches, model, ranks):
            inputs, labels_BT = split_batch(batch)
            losses_N = target_nll(*target_log_probs(model_logits(model, inputs), labels_BT))
            total += losses_N.cpu().double().sum().item()  # as `measure_settings` adds up
            tokens += len(losses_N)
            tick()
        total, tokens = ranks.reduce([total, tokens], "sum")
    return LossReport(loss=per_token(total, int(tokens)), tokens=int(tokens))


def deal(batches: Iterable[Batch], model: nn.Module, ranks: Ranks) -> Iterator[Batch]:
    """This process's share of the batches; every process gets as many.

    Forward passes of a shared model are collective, so where batches do not suffice for all, the
    rest get one without targets, which counts in no sum and in no mean alpha.
    """
    if ranks.world_size == 1:
        yield from batches
        return
    batches = list(batches)
    for begin in range(0, len(batches), ranks.world_size):
        if begin + ranks.rank < len(batches):
            yield batches[begin + ranks.rank]
        else:
            labels = torch.full_like(batches[begin]["labels"], IGNORE_INDEX)
            with unrecorded(model):
                yield {**batches[begin], "labels": labels}


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module has the mode it had before."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def split_batch(batch: Batch) -> tuple[dict[str, Any], Tensor]:
    """What the model is called with, and the labels apart: the loss is reduced here, not inside.

    Raises:
        DataError: if the batch has no labels.
    """
    inputs = dict(model_inputs(batch))
    labels_BT = inputs.pop("labels", None)
    if labels_BT is None:
        names = ", ".join(sorted(batch)) or "nothing"
        raise DataError(f"a batch for evaluation needs 'labels'; it has {names}.")
    return inputs, labels_BT


def documents_of(batch: Batch) -> Tensor:
    """A number for each document of a batch, at each of its tokens (B, T), on the CPU."""
    ids_BT = batch["input_ids"]
    rows_B1 = torch.arange(len(ids_BT)).unsqueeze(1)
    positions_BT = batch.get("position_ids")
    if positions_BT is None:  # A row is a document.
        return rows_B1.expand_as(ids_BT)
    # Documents of one row follow each other; no row has as many as it has tokens and one.
    return rows_B1 * (ids_BT.shape[1] + 1) + (positions_BT.cpu() == 0).cumsum(1)


def model_logits(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Logits (B, T, V) of one forward pass on the device of the model."""
    device = next(model.parameters()).device
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    return model(**moved).logits


def perplexity(loss: float) -> float:
    """`exp(loss)`; inf where that is beyond a float."""
    return math.inf if loss >= _LARGEST_EXPONENT else math.exp(loss)


def warn_if_not_finite(losses: Mapping[str, float], what: str) -> None:
    """Warn of a model whose losses are not numbers, as after a training that diverged.

    Args:
        losses: by the name of their set.
        what: whose losses they are, for the message.
    """
    bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if bad:
        warnings.warn(
            f"{what}: the loss on {', '.join(bad)} is not a number, so the model is of no use. "
            "Train it again with a lower training.learning_rate, or use an earlier checkpoint.",
            stacklevel=2,
        )


def per_token(total: float, tokens: int) -> float:
    """A sum divided by its count of target tokens.

    Raises:
        DataError: if nothing was counted.
    """
    if tokens == 0:
        raise DataError(
            "the evaluation set has no target tokens: it is empty, or every label is -100. "
            "Check the set's path and columns, and which roles are trained on."
        )
    return total / tokens
