"""The forgetting meter: how far a model moved from its base on a set."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from controlllm.common.distributed import ALONE, Ranks
from controlllm.common.errors import DataError
from controlllm.common.losses import (
    log_probs_kl,
    sum_documents,
    target_log_probs,
    target_mask,
    target_nll,
)
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
    "compare_documents",
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
    tallies = [_Tally() for _ in settings]
    for number, documents_D4 in compare_documents(model, batches, settings, reference, ranks):
        tallies[number].add(documents_D4)
    for tally in tallies:
        tally.add_up(ranks)
    return [tally.report() for tally in tallies]


def compare_documents(
    model: nn.Module,
    batches: Iterable[Batch],
    settings: Sequence[Callable[[], object]],
    reference: Reference | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[int, Tensor]]:
    """What `measure_settings` sums up, for who compares models document by document.

    Forward passes of a shared model are collective: every process asks for all that there is, and
    gets that of its own share of the batches.

    Yields:
        For each batch and setting: the setting's number, and (D, 4) in float64 on the CPU. Of each
        document with targets: how many, and over them the sums of the base's cross-entropy, of
        the trained model's, and of KL(base || trained), in nats.

    Raises:
        DataError: a batch has no labels.
        ModelError: if the model is not expanded and no reference is given.
    """
    reference = reference or Reference(model)
    for batch in deal(batches, model, ranks):
        inputs, labels_BT = split_batch(batch)
        documents_N = documents_of(batch)[target_mask(labels_BT).cpu()]
        read = []
        with evaluating(model):
            base_NV, targets_N = target_log_probs(reference.forward(**inputs), labels_BT)
            base_N = target_nll(base_NV, targets_N)
            for set_up in settings:
                set_up()
                model_NV, _ = target_log_probs(model_logits(model, inputs), labels_BT)
                kl_N = log_probs_kl(base_NV.to(model_NV.device), model_NV)
                loss_N = target_nll(model_NV, targets_N.to(model_NV.device))
                read.append([one_N.cpu().double() for one_N in (base_N, loss_N, kl_N)])
                tick()
        for number, of_each_N in enumerate(read):
            sums_D3, counts_D = sum_documents(torch.stack(of_each_N, dim=1), documents_N)
            yield number, torch.cat([counts_D.double()[:, None], sums_D3], dim=1)


class _Tally:
    """Sums over documents, divided once at the end."""

    def __init__(self) -> None:
        # Of target tokens t, both cross-entropies and KL k of each document; then the number of
        # documents, and of k*k, k*t, t*t.
        self.sums = [0.0] * 8

    def add(self, documents_D4: Tensor) -> None:
        """What `compare_documents` gives."""
        tokens_D, _, _, kl_D = documents_D4.unbind(1)
        squares = (kl_D @ kl_D, kl_D @ tokens_D, tokens_D @ tokens_D)
        own = [*documents_D4.sum(0).tolist(), len(kl_D), *map(float, squares)]
        self.sums = [total + one for total, one in zip(self.sums, own, strict=True)]

    def add_up(self, ranks: Ranks) -> None:
        """Sum them over all processes. Collective."""
        self.sums = ranks.reduce(self.sums, "sum")

    def report(self) -> RetentionReport:
        tokens, base, loss, kl, documents, *squares = self.sums
        mean = per_token(kl, int(tokens))
        return RetentionReport(
            base_loss=per_token(base, int(tokens)),
            loss=per_token(loss, int(tokens)),
            kl=mean,
            tokens=int(tokens),
            kl_error=None if documents < 2 else _error(mean, tokens, documents, squares),
            documents=int(documents),
        )


def _error(mean: float, tokens: float, documents: float, squares: Sequence[float]) -> float:
    """That of a ratio of sums: each document's k - mean * t is one independent number."""
    kk, kt, tt = squares
    apart = max(kk - 2 * mean * kt + mean * mean * tt, 0.0)
    return math.sqrt(documents / (documents - 1) * apart) / tokens


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
