"""The weights of several sidecars on one base: a search, one of them at a time.

all together at each alpha   ->  the best point within the budget
each in turn at each alpha   ->  ... until none gets better
half way to its neighbours   ->  ... `refine_steps` times
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from controlllm.common.errors import ModelError
from controlllm.common.storage.files import write_json
from controlllm.common.text.tables import format_table
from controlllm.data import Batch
from controlllm.evaluate.forgetting.alphas import DEFAULT_ALPHAS, check_budget, check_settings
from controlllm.evaluate.forgetting.dial import (
    EvaluationSets,
    MeasuredPoint,
    choose,
    measure_turns,
)
from controlllm.evaluate.forgetting.reference import Reference
from controlllm.evaluate.forgetting.retention import RetentionReport

__all__ = ["Blend", "BlendPoint", "calibrate_blend"]

Weights = dict[str, float | None]
"""The dial of each sidecar; None is as it stood before the search."""


@dataclass(frozen=True)
class BlendPoint(MeasuredPoint):
    """One setting of all dials, measured.

    Attributes:
        weights: the dial of each sidecar; None is as it stood before the search.
        learn: what was measured on each learn set.
        retain: what was measured on each retain set.
    """

    weights: Weights
    learn: dict[str, RetentionReport]
    retain: dict[str, RetentionReport]

    @property
    def is_trained(self) -> bool:
        """Whether no dial is turned."""
        return all(weight is None for weight in self.weights.values())

    @property
    def order(self) -> tuple[int, float]:
        """By rising weights; those that were not turned come last."""
        numbers = [weight for weight in self.weights.values() if weight is not None]
        return len(self.weights) - len(numbers), sum(numbers)

    @property
    def label(self) -> str:
        """The setting as text."""
        return ", ".join(f"{name} {_shown(weight)}" for name, weight in self.weights.items())


@dataclass(frozen=True)
class Blend:
    """All measured settings, and the one that learns most within the budget.

    Attributes:
        points: in the order of the search.
        chosen: the point with the lowest learn loss whose forgetting is within the budget.
        max_forgetting: the budget, in nats per token, for each retain set.
        dial: what is turned.
        on_a_line: whether points that follow one another are neighbours.
    """

    dial: ClassVar[str] = "weights"
    on_a_line: ClassVar[bool] = False

    points: tuple[BlendPoint, ...]
    chosen: BlendPoint
    max_forgetting: float

    def table(self) -> str:
        """One row per setting, a column for each dial and each set; the chosen one is marked."""
        rows = [
            {
                **{name: _shown(weight) for name, weight in point.weights.items()},
                **dict(point.losses()),
                "within the budget": "chosen" if point is self.chosen else "",
            }
            for point in self.points
        ]
        return format_table([*rows[0]], [[*row.values()] for row in rows])

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, ready for JSON."""
        return {
            "sidecars": [*self.chosen.weights],
            "max_forgetting": self.max_forgetting,
            "chosen": self.chosen.weights,
            "points": [
                asdict(point) | {"learn_loss": point.learn_loss, "forgetting": point.forgetting}
                for point in self.points
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON, atomically."""
        write_json(path, self.to_dict())


def calibrate_blend(
    model: nn.Module,
    learn: Mapping[str, Sequence[Batch]],
    retain: Mapping[str, Sequence[Batch]],
    max_forgetting: float = 0.05,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    refine_steps: int = 2,
) -> Blend:
    """Search the dials of several sidecars for what learns most within the budget.

    The search is greedy: what it finds is no worse than all of them turned together, and no single
    dial of those that were measured makes it better. The chosen dials are in force afterwards, and
    stand in the settings of the sidecars; after an error each is where its settings say.

    Args:
        model: a base with several named sidecars (`load_sidecars`, `expand_beside`).
        learn: held-out batches of what was learned, by name of the set.
        retain: held-out batches of what must not be forgotten, by name of the set.
        max_forgetting: the budget for each retain set, in nats per token, against the base.
        alphas: the settings of each dial to measure, in [0, 1].
        refine_steps: how often the gaps around the best alphas are halved and measured again.

    Raises:
        ConfigError: if the budget or an alpha cannot be.
        DataError: if there is no learn or no retain set, or one has no target token.
        ModelError: if the model has no several sidecars.
    """
    check_budget(max_forgetting)
    check_settings("alphas", alphas)
    names = tuple(getattr(model, "sidecars", ()))
    if len(names) < 2:
        raise ModelError(
            f"{type(model).__name__} has no several sidecars whose weights could be found; the one "
            "alpha of an expanded model is found by `calibrate`."
        )
    search = _Search(model, names, EvaluationSets(learn, retain), max_forgetting)
    chosen: Weights = dict.fromkeys(names)
    try:
        best = search.run([*dict.fromkeys([0.0, *alphas])], refine_steps)
        chosen = best.weights
    finally:
        search.turn(chosen)
    return Blend(tuple(search.points), best, max_forgetting)


class _Search:
    """What has been measured, and the next settings to measure."""

    def __init__(
        self, model: Any, names: tuple[str, ...], sets: EvaluationSets, max_forgetting: float
    ) -> None:
        self.model, self.names, self.sets = model, names, sets
        self.max_forgetting = max_forgetting
        self.reference = Reference(model)
        self.before = {name: one.dial for name, one in model.expansions.items()}
        self.points: list[BlendPoint] = []

    @property
    def best(self) -> BlendPoint:
        return choose(self.points, self.max_forgetting)

    def turn(self, weights: Weights) -> None:
        """Turn all dials."""
        self.model.set_alpha(
            {name: self.before[name] if w is None else w for name, w in weights.items()}
        )

    def run(self, alphas: list[float], refine_steps: int) -> BlendPoint:
        self.measure([dict.fromkeys(self.names, alpha) for alpha in [*alphas, None]])
        lines = {name: {*alphas} for name in self.names}
        self.one_by_one({name: [*alphas, None] for name in self.names})
        for _ in range(refine_steps):
            halves = {name: _halves(lines[name], self.best.weights[name]) for name in self.names}
            for name in self.names:
                lines[name].update(halves[name])
            self.one_by_one(halves)
        return self.best

    def one_by_one(self, settings: Mapping[str, Sequence[float | None]]) -> None:
        """Each dial in turn, the newest first, until none gets better."""
        best = None
        while best is not self.best:
            best = self.best
            for name in reversed(self.names):
                self.measure([self.best.weights | {name: alpha} for alpha in settings[name]])

    def measure(self, wanted: Sequence[Weights]) -> None:
        """Measure those that are not measured yet."""
        known = [point.weights for point in self.points]
        new = [weights for weights in wanted if weights not in known]
        if not new:
            return
        turns = [lambda weights=weights: self.turn(weights) for weights in new]
        measured = measure_turns(self.model, self.reference, self.sets, turns, "weights")
        self.points += [BlendPoint(w, *reports) for w, reports in zip(new, measured, strict=True)]


def _halves(line: set[float], weight: float | None) -> list[float]:
    """Half way from a weight to its measured neighbours on both sides."""
    if weight is None:
        return []
    below = max((alpha for alpha in line if alpha < weight), default=None)
    above = min((alpha for alpha in line if alpha > weight), default=None)
    return [(weight + other) / 2 for other in (below, above) if other is not None]


def _shown(weight: float | None) -> str:
    return "trained" if weight is None else f"{weight:g}"
