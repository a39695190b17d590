"""The weights of several sidecars on one base: a search, one of them at a time.

all together at each alpha   ->  the best point within the budget
each in turn at each alpha   ->  ... until none gets better
half way to its neighbours   ->  ... `refine_steps` times
"""

from collections.abc import Mapping, Sequence
from typing import Any

from controlllm.evaluate.forgetting.alphas import check_budget, check_settings
from controlllm.evaluate.forgetting.dial import (
    DialCurve,
    DialPoint,
    EvaluationSets,
    choose,
    measure_turns,
)
from controlllm.evaluate.forgetting.reference import Reference

__all__ = ["blend_sidecars"]

Weights = dict[str, float | None]
"""The dial of each sidecar; None is as it stood before the search."""


def blend_sidecars(
    model: Any,
    sets: EvaluationSets,
    max_forgetting: float,
    alphas: Sequence[float],
    refine_steps: int,
) -> DialCurve:
    """Search the dials of a base's named sidecars for what learns most within the budget.

    The search is greedy: what it finds is no worse than all of them turned together, and no single
    dial of those that were measured makes it better. The chosen dials are in force afterwards, and
    stand in the settings of the sidecars; after an error each is where its settings say.

    Raises:
        ConfigError, DataError: as `calibrate`.
    """
    check_budget(max_forgetting)
    check_settings("alphas", alphas)
    names = tuple(model.sidecars)
    search = _Search(model, names, sets, max_forgetting)
    chosen: Weights = dict.fromkeys(names)
    try:
        best = search.run([*dict.fromkeys([0.0, *alphas])], refine_steps)
        chosen = best.alpha
    finally:
        search.turn(chosen)
    return DialCurve(tuple(search.points), best, max_forgetting, "weights")


class _Search:
    """What has been measured, and the next settings to measure."""

    def __init__(
        self, model: Any, names: tuple[str, ...], sets: EvaluationSets, max_forgetting: float
    ) -> None:
        self.model, self.names, self.sets = model, names, sets
        self.max_forgetting = max_forgetting
        self.reference = Reference(model)
        self.before = {name: one.dial for name, one in model.expansions.items()}
        self.points: list[DialPoint] = []

    @property
    def best(self) -> DialPoint:
        return choose(self.points, self.max_forgetting)

    def turn(self, weights: Weights) -> None:
        """Turn all dials."""
        self.model.stand_at(
            {name: self.before[name] if w is None else w for name, w in weights.items()}
        )

    def run(self, alphas: list[float], refine_steps: int) -> DialPoint:
        self.measure([dict.fromkeys(self.names, alpha) for alpha in [*alphas, None]])
        lines = {name: {*alphas} for name in self.names}
        self.one_by_one({name: [*alphas, None] for name in self.names})
        for _ in range(refine_steps):
            halves = {name: _halves(lines[name], self.best.alpha[name]) for name in self.names}
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
                self.measure([self.best.alpha | {name: alpha} for alpha in settings[name]])

    def measure(self, wanted: Sequence[Weights]) -> None:
        """Measure those that are not measured yet."""
        known = [point.alpha for point in self.points]
        new = [weights for weights in wanted if weights not in known]
        if not new:
            return
        turns = [lambda weights=weights: self.turn(weights) for weights in new]
        measured = measure_turns(self.model, self.reference, self.sets, turns, "weights")
        self.points += [DialPoint(w, *reports) for w, reports in zip(new, measured, strict=True)]


def _halves(line: set[float], weight: float | None) -> list[float]:
    """Half way from a weight to its measured neighbours on both sides."""
    if weight is None:
        return []
    below = max((alpha for alpha in line if alpha < weight), default=None)
    above = min((alpha for alpha in line if alpha > weight), default=None)
    return [(weight + other) / 2 for other in (below, above) if other is not None]
