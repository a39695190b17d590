"""The forgetting meter inside a run, and the choice of the best checkpoint within a budget.

The numbers themselves come from `controlllm.evaluate`, so that a number in a log and a number in a
report can never differ.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

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
    recording_alpha,
    worst_forgetting,
)
from controlllm.evaluate.own_text import certificates
from controlllm.expansion.files.records import BASE
from controlllm.train.observe.metrics import set_metrics, stage_metrics

__all__ = ["Best", "Budget", "ForgettingMeter", "Measurement", "better", "over_budget"]

Sets = Mapping[str, Sequence[Batch]]
"""Evaluation batches by the name of their set."""


Budget = float | Mapping[str, float] | None
"""What each retain set may lose, in nats per token; or by the stage that the set belongs to."""


@dataclass(frozen=True)
class Measurement:
    """One evaluation: a report for each set; `kl` of learn sets is not measured (nan).

    Attributes:
        learn: of what is to be learned, beside the base.
        retain: of what is to be kept, each beside the stage that it belongs to.
        owners: the stage of each retain set that does not belong to the base.
        losses_at: by set and stage the loss that the stage has there, where there are several.
    """

    learn: Mapping[str, RetentionReport]
    retain: Mapping[str, RetentionReport]
    owners: Mapping[str, str] = field(default_factory=dict)
    losses_at: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name."""
        found = set_metrics("learn", self.learn) | set_metrics("retain", self.retain)
        for kind, reports in (("learn", self.learn), ("retain", self.retain)):
            for name in reports:
                found |= stage_metrics(f"{kind}/{name}", self.losses_at.get(f"{kind}/{name}", {}))
        return found

    @property
    def forgetting(self) -> float | None:
        """The largest forgetting of any retain set; None without such sets."""
        return worst_forgetting(self.retain) if self.retain else None

    @property
    def by_stage(self) -> dict[str, float]:
        """The largest forgetting of the sets of each stage."""
        sets: dict[str, dict[str, RetentionReport]] = {}
        for name, report in self.retain.items():
            sets.setdefault(self.owners.get(name, BASE), {})[name] = report
        return {stage: worst_forgetting(reports) for stage, reports in sets.items()}

    @property
    def learn_loss(self) -> float | None:
        """The mean loss of the learn sets; None without such sets."""
        return mean_loss(self.learn) if self.learn else None


class ForgettingMeter:
    """Measures the model, its base and the stages before it on all held-out sets.

    Args:
        model: what trains.
        references: who computes the base and each stage before, by name, the oldest first; none
            where there are no sets.
        learn: the sets to be learned.
        retain: the sets to be retained.
        ranks: processes that share the model, each with all batches.
        owners: the stage that a retain set belongs to, where that is not the base: it is compared
            with that.
    """

    def __init__(
        self,
        model: nn.Module,
        references: Mapping[str, Reference],
        learn: Sets,
        retain: Sets,
        ranks: Ranks,
        owners: Mapping[str, str] | None = None,
    ) -> None:
        self.model, self.references, self.ranks = model, references, ranks
        self.learn, self.retain, self.owners = learn, retain, owners or {}

    @property
    def enabled(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.learn or self.retain)

    def measure(self) -> Measurement:
        """Evaluate the model as it is, at its nominal alpha. Collective."""
        with progress("measuring", "batches of the held-out sets", self._batches()):
            at = self._losses_at
            with self._recording():
                retain = {
                    name: measure_retention(self.model, batches, self._reference(name), self.ranks)
                    for name, batches in self.retain.items()
                }
            learn = {}
            with self._recording():  # What was learned has the last word.
                for name, batches in self.learn.items():
                    report = evaluate_losses(self.model, batches, self.ranks)
                    base = at[f"learn/{name}"][BASE]
                    learn[name] = RetentionReport(base, report.loss, float("nan"), report.tokens)
        several = len(self.references) > 1
        return Measurement(learn, retain, self.owners, at if several else {})

    def _recording(self) -> AbstractContextManager[Any]:
        """Record mean alphas over all sets that are measured inside, not set by set."""
        return recording_alpha(self.model, self.ranks)

    def _reference(self, name: str) -> Reference:
        return self.references[self.owners.get(name, BASE)]

    def _batches(self) -> int:
        """How many this process is going to compute."""
        sets = [*self.retain.values(), *self.learn.values()]
        if "_losses_at" not in vars(self):  # First the base computes them, too, and each stage.
            sets += [batches for _, _, batches in self._of_stages()]
        return sum(-(-len(batches) // self.ranks.world_size) for batches in sets)

    def _of_stages(self) -> Iterator[tuple[str, str, Sequence[Batch]]]:
        """Set, stage and batches of what stages compute once; the base alone: the learn sets."""
        for kind, sets in (("learn", self.learn), ("retain", self.retain)):
            for name, batches in sets.items():
                for stage in self.references:
                    if kind == "learn" or len(self.references) > 1:
                        yield f"{kind}/{name}", stage, batches

    @cached_property
    def _losses_at(self) -> dict[str, dict[str, float]]:
        """The base and the stages on the sets, computed once: they never change."""
        losses: dict[str, dict[str, float]] = {}
        for name, stage, batches in self._of_stages():
            with self.references[stage].active() as model:
                report = evaluate_losses(model, batches, self.ranks)
            losses.setdefault(name, {})[stage] = report.loss
        return losses


@dataclass(frozen=True)
class Best:
    """The best step so far.

    Attributes:
        step: optimizer steps done.
        learn_loss: mean loss of the learn sets there.
        forgetting: largest forgetting of the retain sets there; None without such sets.
        kl_upper: largest 95 % upper bound of KL(base || model) per token of own text there; None
            without own text.
        by_stage: the same of the sets of each stage, where not all are the base's.
    """

    step: int
    learn_loss: float
    forgetting: float | None
    kl_upper: float | None = None
    by_stage: dict[str, float] = field(default_factory=dict)


def over_budget(by_stage: Mapping[str, float], budget: Budget) -> list[str]:
    """The stages of which more is forgotten than the budget allows; none without one.

    >>> over_budget({"base": 0.01, "a": 0.2}, {"a": 0.1}), over_budget({"base": 0.01}, 0.05)
    (['a'], [])
    """
    if budget is None:
        return []
    allowed = budget if isinstance(budget, Mapping) else dict.fromkeys(by_stage, budget)
    return [stage for stage, most in allowed.items() if not by_stage.get(stage, 0.0) <= most]


def better(
    step: int, measurement: Measurement, best: Best | None, max_forgetting: Budget
) -> Best | None:
    """The measurement as the new best, if it learned more than `best` and keeps to the budget."""
    loss, by_stage = measurement.learn_loss, measurement.by_stage
    if loss is None or math.isnan(loss) or over_budget(by_stage, max_forgetting):
        return None
    if best is not None and not loss < best.learn_loss:
        return None
    bounds = [one.upper for one in certificates(measurement.retain).values()]
    told = by_stage if by_stage.keys() - {BASE} else {}
    return Best(step, loss, measurement.forgetting, max(bounds, default=None), told)
