"""A dial, measured: settings between the base and the trained model, and the one to choose."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from controlllm.common.errors import ModelError
from controlllm.common.storage.files import write_json
from controlllm.common.text.progress import progress
from controlllm.common.text.tables import format_table
from controlllm.data import Batch
from controlllm.evaluate.forgetting.alphas import check_budget, check_settings, told_setting
from controlllm.evaluate.forgetting.own import is_own_text
from controlllm.evaluate.forgetting.reference import Reference
from controlllm.evaluate.forgetting.retention import (
    RetentionReport,
    mean_loss,
    measure_settings,
    worst_forgetting,
)

__all__ = [
    "Dial",
    "DialCurve",
    "DialPoint",
    "EvaluationSets",
    "choose",
    "measure_turns",
    "trace_curve",
]


@dataclass(frozen=True)
class EvaluationSets:
    """Held-out batches by name of the set.

    Attributes:
        learn: sets of the new domain, whose loss should fall.
        retain: sets of what must not be forgotten.
    """

    learn: Mapping[str, Sequence[Batch]]
    retain: Mapping[str, Sequence[Batch]]


@dataclass(frozen=True)
class Dial:
    """A model, and how to put a setting between base and trained model in force.

    Attributes:
        model: what is measured.
        turn: puts a setting in force; None is the model as it was trained.
        reference: the base that forgetting is measured against.
        name: what is turned, as tables and pictures call it.
    """

    model: nn.Module
    turn: Callable[[float | None], object]
    reference: Reference
    name: str


@dataclass(frozen=True)
class DialPoint:
    """One setting, measured.

    Attributes:
        alpha: the setting (for token gates the number that multiplies them); None is the model as
            it was trained. Of several sidecars one of these by name, None being as each stood.
        learn: what was measured on each learn set.
        retain: what was measured on each retain set.
    """

    alpha: Any
    learn: dict[str, RetentionReport]
    retain: dict[str, RetentionReport]

    @property
    def learn_loss(self) -> float:
        """Mean of the learn sets' losses, in nats per token."""
        return mean_loss(self.learn)

    @property
    def forgetting(self) -> float:
        """Rise of the loss on the retain set that forgot most, in nats per token."""
        return worst_forgetting(self.retain)

    @property
    def by_name(self) -> dict[str, float | None]:
        """The setting of each of several sidecars; of one dial without a name."""
        return dict(self.alpha) if isinstance(self.alpha, Mapping) else {"": self.alpha}

    @property
    def is_trained(self) -> bool:
        """Whether no dial is turned."""
        return all(alpha is None for alpha in self.by_name.values())

    @property
    def order(self) -> tuple[int, float]:
        """By rising alpha; as trained comes last."""
        numbers = [alpha for alpha in self.by_name.values() if alpha is not None]
        return len(self.by_name) - len(numbers), sum(numbers)

    @property
    def label(self) -> str:
        """The setting as text."""
        return told_setting(self.alpha)

    def losses(self) -> Iterator[tuple[str, object]]:
        """What was measured, with headers for a table.

        Of several sets the mean of the learn losses and the worst forgetting stand beside them:
        what decides.
        """
        for name, report in self.learn.items():
            yield f"loss of {name}", report.loss
        if len(self.learn) > 1:
            yield "mean learn loss", self.learn_loss
        for name, report in self.retain.items():
            if not is_own_text(name):  # There the KL, below, is what decides.
                yield f"forgetting of {name}", report.forgetting
        if len(self.retain) > 1:
            yield "worst forgetting", self.forgetting
        for name, report in self.retain.items():
            yield f"KL(base‖trained) of {name}", report.kl


@dataclass(frozen=True)
class DialCurve:
    """All measured settings, and the one that learns most within the budget.

    Attributes:
        points: by rising alpha; the trained setting, if measured, comes last. Of several sidecars
            in the order of the search.
        chosen: the point with the lowest learn loss whose forgetting is within the budget.
        max_forgetting: the budget, in nats per token, for each retain set.
        dial: what is turned.
    """

    points: tuple[DialPoint, ...]
    chosen: DialPoint
    max_forgetting: float
    dial: str

    @property
    def on_a_line(self) -> bool:
        """Whether points that follow one another are neighbours."""
        return not isinstance(self.chosen.alpha, Mapping)

    def table(self) -> str:
        """One row per setting, a column for each dial and each set; the chosen one is marked."""
        headers = [name for name, _ in self._columns(self.chosen)]
        rows = [[cell for _, cell in self._columns(point)] for point in self.points]
        return format_table(headers, rows)

    def _columns(self, point: DialPoint) -> Iterator[tuple[str, object]]:
        yield from (
            (name or self.dial, told_setting(alpha)) for name, alpha in point.by_name.items()
        )
        yield from point.losses()
        yield "within the budget", "chosen" if point is self.chosen else ""

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, ready for JSON."""
        return {
            "dial": self.dial,
            "max_forgetting": self.max_forgetting,
            "chosen": self.chosen.alpha,
            "points": [
                asdict(point) | {"learn_loss": point.learn_loss, "forgetting": point.forgetting}
                for point in self.points
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write the curve as JSON, atomically."""
        write_json(path, self.to_dict())


def trace_curve(
    dial: Dial,
    sets: EvaluationSets,
    max_forgetting: float,
    settings: Sequence[float | None],
    refine_steps: int = 0,
) -> DialCurve:
    """Measure the settings, then halve the gap above the chosen one `refine_steps` times.

    The base (setting 0) is always among the points, so that one is always within the budget.

    Raises:
        ConfigError: if the budget is negative or not finite, or a setting is outside [0, 1].
        DataError: if there is no learn or no retain set, or one has no target token.
        ModelError: if even the base's loss is not a number.
    """
    check_budget(max_forgetting)
    check_settings(dial.name, settings)
    points = _measure(dial, sets, list(dict.fromkeys([0.0, *settings])))
    for _ in range(refine_steps):
        middle = _middle(points, choose(points, max_forgetting))
        if middle is None:
            break
        points += _measure(dial, sets, [middle])
    ordered = tuple(sorted(points, key=lambda point: point.order))
    return DialCurve(ordered, choose(ordered, max_forgetting), max_forgetting, dial.name)


def _measure(dial: Dial, sets: EvaluationSets, settings: Sequence[float | None]) -> list[DialPoint]:
    """One point per setting."""
    turns = [lambda setting=setting: dial.turn(setting) for setting in settings]
    measured = measure_turns(dial.model, dial.reference, sets, turns, dial.name)
    return [
        DialPoint(setting, *reports) for setting, reports in zip(settings, measured, strict=True)
    ]


def measure_turns(
    model: nn.Module,
    reference: Reference,
    sets: EvaluationSets,
    turns: Sequence[Callable[[], object]],
    name: str,
) -> list[tuple[dict[str, RetentionReport], dict[str, RetentionReport]]]:
    """What is measured of a model on learn and retain sets, after each of the turns.

    The batches are walked once, and the base is asked once per batch. `name` is what is turned, as
    the line of progress calls it.
    """

    def measure(batches: Sequence[Batch]) -> list[RetentionReport]:
        return measure_settings(model, batches, turns, reference)

    number = sum(map(len, [*sets.learn.values(), *sets.retain.values()]))
    what = f"batches at {len(turns)} settings" if len(turns) > 1 else "batches"
    with progress(f"measuring {name}", what, number * len(turns)):
        learn = {name: measure(batches) for name, batches in sets.learn.items()}
        retain = {name: measure(batches) for name, batches in sets.retain.items()}
    return [
        (
            {name: reports[index] for name, reports in learn.items()},
            {name: reports[index] for name, reports in retain.items()},
        )
        for index in range(len(turns))
    ]


def choose(points: Sequence[DialPoint], max_forgetting: float) -> DialPoint:
    """The lowest learn loss within the budget; of equals, the one nearest to the base.

    Setting 0 is the base, so it is within any budget, whatever two products of equal matrices may
    differ by; but not where losses are no numbers.
    """

    def is_within(point: DialPoint) -> bool:
        base = point.alpha == 0 and math.isfinite(point.forgetting)
        return base or point.forgetting <= max_forgetting

    within = [p for p in points if is_within(p) and not math.isnan(p.learn_loss)]
    if not within:
        raise ModelError(
            "no setting can be chosen: even the base's loss is not a number on these sets. "
            "Check the base model, its precision and the sets."
        )
    return min(within, key=lambda point: (point.learn_loss, point.order))


def _middle(points: Sequence[DialPoint], chosen: DialPoint) -> float | None:
    """Half way from the chosen alpha to the next larger one; None where there is none."""
    if chosen.alpha is None:
        return None
    above = [p.alpha for p in points if p.alpha is not None and p.alpha > chosen.alpha]
    return (chosen.alpha + min(above)) / 2 if above else None
