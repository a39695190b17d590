"""The forgetting meter: how far a model moved from its base on a set."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from controlllm.common.distributed import ALONE, Ranks
from controlllm.common.errors import DataError
from controlllm.common.losses import log_probs_kl, nll_sum, target_log_probs, target_mask
from controlllm.common.text.progress import tick
from controlllm.data import Batch
from controlllm.evaluate.forgetting.expanded import recording_alpha
from controlllm.evaluate.forgetting.losses import (
    deal,
    documents_of,
    evaluating,
    model_logits,
    per_token,
    split_batch,
)
from controlllm.evaluate.forgetting.own import is_own_text
from controlllm.evaluate.forgetting.reference import Reference

__all__ = [
    "RetentionReport",
    "mean_loss",
    "measure_retention",
    "measure_settings",
    "worst",
    "worst_forgetting",
]


@dataclass(frozen=True)
class RetentionReport:
    """Base and trained model on the same tokens of one set.

    Attributes:
        base_loss: mean cross-entropy of the base per target token, in nats.
        loss: the same of the trained model.
        kl: mean KL(base || trained) per target token, in nats.
        tokens: how many target tokens were counted.
        kl_error: standard error of `kl`, the documents being the independent units; None where
            there are fewer than two.
        documents: how many have target tokens.
    """

    base_loss: float
    loss: float
    kl: float
    tokens: int
    kl_error: float | None = None
    documents: int = 0

    @property
    def forgetting(self) -> float:
        """How much the loss rose, in nats per token; negative where the model became better."""
        return self.loss - self.base_loss

    @property
    def gain(self) -> float:
        """How much the loss fell, in nats per token: what a `learn` set is watched for."""
        return self.base_loss - self.loss


def measure_retention(
    model: nn.Module,
    batches: Iterable[Batch],
    reference: Reference | None = None,
    ranks: Ranks = ALONE,
) -> RetentionReport:
    """Loss of base and trained model, and KL(base || trained), over all batches.

    The mean alpha of an expanded model's token gates is recorded in its config on the way.

    Args:
        model: the trained model; its training mode and its dial stay as they are.
        batches: padded or packed batches with `labels`.
        reference: the base; for an expanded model it is the model itself with the expansion off.
        ranks: processes that share the model, each with all batches: they deal them out. Collective
            then.

    Raises:
        DataError: if there is no target token in any batch.
        ModelError: if the model is not expanded and no reference is given.
    """
    with recording_alpha(model, ranks):
        return measure_settings(model, batches, [lambda: None], reference, ranks)[0]


def measure_settings(
    model: nn.Module,
    batches: Iterable[Batch],
    settings: Sequence[Callable[[], object]],
    reference: Reference | None = None,
    ranks: Ranks = ALONE,
) -> list[RetentionReport]:
    """Measure the model under several settings, asking the base only once per batch.

    Each setting is called before the forward pass that it is measured by; the rest is as in
    `measure_retention`.

    Returns:
        One report per setting. The last setting stays in force.
    """
    reference = reference or Reference(model)
    tallies = [_Tally() for _ in settings]
    with evaluating(model):
        for batch in deal(batches, model, ranks):
            inputs, labels_BT = split_batch(batch)
            documents_N = documents_of(batch)[target_mask(labels_BT).cpu()]
            base_NV, targets_N = target_log_probs(reference.forward(**inputs), labels_BT)
            for set_up, tally in zip(settings, tallies, strict=True):
                set_up()
                model_NV, _ = target_log_probs(model_logits(model, inputs), labels_BT)
                tally.add(base_NV, model_NV, targets_N, documents_N)
                tick()
        for tally in tallies:
            tally.add_up(ranks)
    return [tally.report() for tally in tallies]


class _Tally:
    """Sums over batches, divided once at the end."""

    def __init__(self) -> None:
        self.base, self.loss, self.kl, self.tokens = 0.0, 0.0, 0.0, 0.0
        # Of each document's KL k and target tokens t: their number, and sums of k*k, k*t, t*t.
        self.moments = [0.0] * 4

    def add(
        self, base_NV: Tensor, model_NV: Tensor, targets_N: Tensor, documents_N: Tensor
    ) -> None:
        """Log-probabilities of both at N targets, and the document of each."""
        base_NV, targets_N = base_NV.to(model_NV.device), targets_N.to(model_NV.device)
        self.base += nll_sum(base_NV, targets_N).item()
        self.loss += nll_sum(model_NV, targets_N).item()
        kl_N = log_probs_kl(base_NV, model_NV)
        self.kl += kl_N.sum().item()
        self.tokens += len(targets_N)
        _, document = documents_N.to(kl_N.device).unique(return_inverse=True)
        tokens = document.bincount().double()
        sums = torch.zeros_like(tokens).index_add_(0, document, kl_N.double())
        own: list[Any] = [len(tokens), sums @ sums, sums @ tokens, tokens @ tokens]
        self.moments = [total + float(one) for total, one in zip(self.moments, own, strict=True)]

    def add_up(self, ranks: Ranks) -> None:
        """Sum them over all processes. Collective."""
        own = [self.base, self.loss, self.kl, self.tokens, *self.moments]
        self.base, self.loss, self.kl, self.tokens, *self.moments = ranks.reduce(own, "sum")

    def report(self) -> RetentionReport:
        tokens = int(self.tokens)
        return RetentionReport(
            base_loss=per_token(self.base, tokens),
            loss=per_token(self.loss, tokens),
            kl=per_token(self.kl, tokens),
            tokens=tokens,
            kl_error=self._error(),
            documents=int(self.moments[0]),
        )

    def _error(self) -> float | None:
        """That of a ratio of sums: each document's k - kl * t is one independent number."""
        number, kk, kt, tt = self.moments
        if number < 2:
            return None
        ratio = self.kl / self.tokens
        apart = max(kk - 2 * ratio * kt + ratio * ratio * tt, 0.0)
        return math.sqrt(number / (number - 1) * apart) / self.tokens


def worst_forgetting(reports: Mapping[str, RetentionReport]) -> float:
    """The largest forgetting of any retain set: a budget must hold on each of them.

    Of own text it is KL(base || trained), which the loss is expected to rise by. A set whose loss
    is not a number counts as infinitely forgotten.

    Raises:
        DataError: if there is no set.
    """
    _require_sets(reports, "retain")
    return worst(
        report.kl if is_own_text(name) else report.forgetting for name, report in reports.items()
    )


def worst(values: Iterable[float]) -> float:
    """The largest of some losses, rises or divergences; what is not a number is worse than all."""
    return max(math.inf if math.isnan(value) else value for value in values)


def mean_loss(reports: Mapping[str, RetentionReport]) -> float:
    """The mean of the sets' losses, each set with equal weight: what "learns most" compares.

    Raises:
        DataError: if there is no set.
    """
    _require_sets(reports, "learn")
    return sum(report.loss for report in reports.values()) / len(reports)


def _require_sets(reports: Mapping[str, RetentionReport], kind: str) -> None:
    if not reports:
        raise DataError(f"no {kind} set is given; name at least one under data.{kind}.")
