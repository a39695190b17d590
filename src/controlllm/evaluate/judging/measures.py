"""What a rule bounds, in one form: a number that should be at least something.

A rise that is bounded from above is a fall that is bounded from below, and a share of answers that
were cut off is one of whole answers: such a number is mirrored.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from controlllm.evaluate.items.comparison import Change
from controlllm.evaluate.items.records import Item
from controlllm.evaluate.judging.gate import SHARES, Rule
from controlllm.evaluate.statistics import Difference, Interval, wilson

__all__ = ["Measure", "difference_of", "numbers_of", "share_of"]


@dataclass(frozen=True)
class Measure:
    """A number that should be at least something.

    Attributes:
        interval: by the level.
        p_value: one-sided, that the truth is below a bound.
        deviation: of a single item.
        num_items: how many there are.
        mirrored: whether it stands for `mirror` minus itself.
        mirror: 0 for a difference, 1 for a share.
    """

    interval: Callable[[float], Interval]
    p_value: Callable[[float], float]
    deviation: float
    num_items: int
    mirrored: bool
    mirror: float

    def turned(self, value: float) -> float:
        """A bound as this number has it, or this number as the rule has it."""
        return self.mirror - value if self.mirrored else value


def numbers_of(change: Change) -> Iterator[str]:
    """The readings and shares that a benchmark has."""
    yield from change.readings
    yield from (name for name in SHARES if getattr(change, name) is not None)


def difference_of(change: Change, rule: Rule) -> Measure | None:
    """How far the model is above the base; None where that was not read."""
    reading = change.readings.get(rule.what)
    if reading is None:
        return None
    found, mirrored = reading.difference, rule.kind == "not_above"
    if mirrored:
        found = found.negated()
    return Measure(
        interval=found.interval,
        p_value=lambda bound: _p_value_of(found, bound),
        deviation=found.around[1] * math.sqrt(found.num_items),
        num_items=found.num_items,
        mirrored=mirrored,
        mirror=0.0,
    )


def _p_value_of(found: Difference, bound: float) -> float:
    from scipy.stats import t

    if found.num_clusters < 2:
        return 1.0
    center, error = found.around
    apart = center - bound
    if error == 0:
        return 0.0 if apart >= 0 else 1.0
    return float(t.sf(apart / error, found.num_clusters - 1))


def share_of(items: Sequence[tuple[Item, Item]], rule: Rule) -> Measure | None:
    """The share of the model's own answers, or of the others where it is bounded from above."""
    told = [value for _, item in items if (value := getattr(item, rule.what)) is not None]
    if not told:
        return None
    mirrored, total = rule.kind == "not_above", len(told)
    count = total - sum(told) if mirrored else sum(told)
    bound = 1 - rule.bound if mirrored else rule.bound
    return Measure(
        interval=lambda level: wilson(count, total, level),
        p_value=lambda bound: _p_value_of_share(count / total, total, bound),
        deviation=math.sqrt(bound * (1 - bound)),
        num_items=total,
        mirrored=mirrored,
        mirror=1.0,
    )


def _p_value_of_share(share: float, total: int, bound: float) -> float:
    """By the score test, which Wilson's interval is made of."""
    from scipy.stats import norm

    return float(norm.sf((share - bound) / math.sqrt(bound * (1 - bound) / total)))
