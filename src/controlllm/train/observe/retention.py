"""The forgetting meter inside a run, and the choice of the best checkpoint within a budget.

The numbers themselves come from `controlllm.evaluate`, so that a number in a log and a number in a
report can never differ.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from controlllm.common.distributed import Ranks
from controlllm.common.text.progress import progress
from controlllm.data import Batch
from controlllm.evaluate import (
    Reference,
    RetentionReport,
    evaluate_losses,
    mean_loss,
    measure_retention,
    worst_forgetting,
)
from controlllm.evaluate.own_text import certificates
from controlllm.train.observe.metrics import set_metrics

__all__ = ["Best", "ForgettingMeter", "Measurement", "better", "within_budget"]

Sets = Mapping[str, Sequence[Batch]]
"""Evaluation batches by the name of their set."""


@dataclass(frozen=True)
class Measurement:
    """One evaluation: a report for each set; `kl` of learn sets is not measured (nan)."""

    learn: Mapping[str, RetentionReport]
    retain: Mapping[str, RetentionReport]

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name."""
        return set_metrics("learn", self.learn) | set_metrics("retain", self.retain)

    @property
    def forgetting(self) -> float | None:
        """The largest forgetting of any retain set; None without such sets."""
        return worst_forgetting(self.retain) if self.retain else None

    @property
    def learn_loss(self) -> float | None:
        """The mean loss of the learn sets; None without such sets."""
        return mean_loss(self.learn) if self.learn else None


class ForgettingMeter:
    """Measures base and model on all held-out sets.

    Args:
        model: what trains.
        reference: its base; None where there are no sets.
        learn: the sets to be learned.
        retain: the sets to be retained.
        ranks: processes that share the model, each with all batches.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: Reference | None,
        learn: Sets,
        retain: Sets,
        ranks: Ranks,
    ) -> None:
        self.model, self.reference, self.ranks = model, reference, ranks
        self.learn, self.retain = learn, retain

    @property
    def enabled(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.learn or self.retain)

    def measure(self) -> Measurement:
        """Evaluate the model as it is, at its nominal alpha. Collective."""
        with progress("measuring", "batches of the held-out sets", self._batches()):
            retain = {
                name: measure_retention(self.model, batches, self.reference, self.ranks)
                for name, batches in self.retain.items()
            }
            learn = {}
            for name, base in self._base_of_learn.items():
                report = evaluate_losses(self.model, self.learn[name], self.ranks)
                learn[name] = replace(base, loss=report.loss)
        return Measurement(learn, retain)

    def _batches(self) -> int:
        """How many this process is going to compute."""
        times = 1 if "_base_of_learn" in vars(self) else 2  # First the base computes them, too.
        sets = [*self.retain.values(), *(times * list(self.learn.values()))]
        return sum(-(-len(batches) // self.ranks.world_size) for batches in sets)

    @cached_property
    def _base_of_learn(self) -> dict[str, RetentionReport]:
        """The base on the learn sets, computed once: it never changes."""
        reports = {}
        assert self.reference is not None
        for name, batches in self.learn.items():
            with self.reference.active() as base:
                report = evaluate_losses(base, batches, self.ranks)
            reports[name] = RetentionReport(report.loss, report.loss, float("nan"), report.tokens)
        return reports


@dataclass(frozen=True)
class Best:
    """The best step so far.

    Attributes:
        step: optimizer steps done.
        learn_loss: mean loss of the learn sets there.
        forgetting: largest forgetting of the retain sets there; None without such sets.
        kl_upper: largest 95 % upper bound of KL(base || model) per token of own text there; None
            without own text.
    """

    step: int
    learn_loss: float
    forgetting: float | None
    kl_upper: float | None = None


def within_budget(measurement: Measurement, max_forgetting: float | None) -> bool:
    """Whether every retain set keeps to the budget (true without a budget or without such sets)."""
    forgetting = measurement.forgetting
    return max_forgetting is None or forgetting is None or forgetting <= max_forgetting


def better(
    step: int, measurement: Measurement, best: Best | None, max_forgetting: float | None
) -> Best | None:
    """The measurement as the new best, if it learned more than `best` and keeps to the budget."""
    loss = measurement.learn_loss
    if loss is None or math.isnan(loss) or not within_budget(measurement, max_forgetting):
        return None
    if best is not None and not loss < best.learn_loss:
        return None
    bounds = [one.upper for one in certificates(measurement.retain).values()]
    return Best(step, loss, measurement.forgetting, max(bounds, default=None))
