"""Two models on the same items: readings, intervals, and one word for each benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from controlllm.common.errors import DataError
from controlllm.common.registry import check_choice
from controlllm.evaluate.items.records import READINGS, Asked, Evaluation, Item
from controlllm.evaluate.statistics import (
    Difference,
    detectable_difference,
    mcnemar,
    paired_difference,
    wilson,
)

__all__ = ["Change", "Outcome", "Reading", "compare_models", "pair"]

MANY_TASKS = 20
"""From so many subjects on, items of one subject count as a cluster; few clusters tell nothing."""
LEAST_OF_BITS = 0.01
"""Bits per byte are so exact that any training moves them: less than 1 % is no change."""


class Outcome(StrEnum):
    """What became of a capability."""

    GAINED = "gained"
    KEPT = "kept"
    FORMAT_LOST = "format lost"
    KNOWLEDGE_LOST = "knowledge lost"


@dataclass(frozen=True)
class Reading:
    """One of `READINGS` over all items of a benchmark.

    Attributes:
        name: which.
        base: mean of the base.
        value: mean of the other model.
        difference: other minus base over the same items, clustered.
        p_value: exact McNemar where every item is right or wrong; else None.
    """

    name: str
    base: float
    value: float
    difference: Difference
    p_value: float | None

    @property
    def rose(self) -> bool:
        """Whether it surely became better (95 %)."""
        return self._surely(+1)

    @property
    def fell(self) -> bool:
        """Whether it surely became worse (95 %)."""
        return self._surely(-1)

    def _surely(self, direction: int) -> bool:
        interval = self.difference.interval()
        if not READINGS[self.name]:
            direction = -direction
            if abs(self.value - self.base) < LEAST_OF_BITS * self.base:
                return False
        return interval.low > 0 if direction > 0 else interval.high < 0


@dataclass(frozen=True)
class Change:
    """What became of one benchmark.

    Attributes:
        benchmark: as it was asked.
        label: of the model that is compared with the base.
        items: pairs of the base's item and the model's.
        readings: by name; those that the items have.
        in_format: share of answers in the task's format, of base and model; None if not read.
        cut_off: share of answers that reached the limit of tokens, likewise.
        outcome: the word.
        reason: the sentence behind it.
        decided_by: the reading that the word came from; None where nothing surely changed.
    """

    benchmark: Asked
    label: str
    items: tuple[tuple[Item, Item], ...]
    readings: dict[str, Reading]
    in_format: tuple[float, float] | None
    cut_off: tuple[float, float] | None
    outcome: Outcome
    reason: str
    decided_by: str | None = None

    def flipped(self) -> tuple[tuple[Item, Item], ...]:
        """Items that one of the two had right and the other wrong, by the first reading."""
        name = next((one for one in ("strict", "choice", "lenient") if one in self.readings), None)
        if name is None:
            return ()
        return tuple(pair for pair in self.items if len({one.reading(name) for one in pair}) > 1)


def compare_models(evaluation: Evaluation, label: str, base: str = "base") -> list[Change]:
    """Compare a model with the base, benchmark by benchmark.

    Args:
        evaluation: what both answered.
        label: of the model.
        base: label of the other.

    Raises:
        ConfigError: a label is not there; with the nearest.
        DataError: the two were not asked the same; with the first difference.
    """
    for name in (label, base):
        check_choice("model", name, evaluation.items)
    return [_change(evaluation, asked, label, base) for asked in evaluation.benchmarks]


def pair(first: Sequence[Item], second: Sequence[Item]) -> list[tuple[Item, Item]]:
    """The items of two models, side by side.

    Raises:
        DataError: they were not asked the same; with the first difference.
    """
    known, others = _by_document(first), _by_document(second)
    pairs = []
    for place, item in known.items():
        where = f"{item.benchmark}: document {item.doc} of {item.task}"
        other = others.pop(place, None)
        if other is None:
            raise DataError(f"{where} was asked of one model only; evaluate both anew.")
        if other.prompt != item.prompt:
            raise DataError(
                f"{where} was asked with other words (prompt {item.prompt} and {other.prompt}): "
                "another template, other examples or another version of the task. Evaluate both "
                "with the same settings."
            )
        for name, what in (("gold", "right answer"), ("cluster", "cluster")):
            one, two = getattr(item, name), getattr(other, name)
            if one != two:
                raise DataError(
                    f"{where} has another {what} ({str(one)[:80]!r} and {str(two)[:80]!r}): "
                    "another version of the task or of its data. Evaluate both anew."
                )
        pairs.append((item, other))
    if others:
        task, doc = next(iter(others))
        raise DataError(f"document {doc} of {task} was asked of one model only; evaluate both.")
    return pairs


def _by_document(items: Sequence[Item]) -> dict[tuple[str, int], Item]:
    found: dict[tuple[str, int], Item] = {}
    for item in items:
        if (item.task, item.doc) in found:
            raise DataError(
                f"{item.benchmark}: document {item.doc} of {item.task} is there twice; evaluate "
                "the model anew."
            )
        found[item.task, item.doc] = item
    return found


def _change(evaluation: Evaluation, asked: Asked, label: str, base: str) -> Change:
    pairs = pair(evaluation.of(base, asked.name), evaluation.of(label, asked.name))
    if not pairs:
        raise DataError(f"{asked.name}: there is no item.")
    readings = {name: found for name in READINGS if (found := _reading(name, pairs)) is not None}
    outcome, reason, decided_by = _outcome(readings, asked, len(pairs))
    return Change(
        benchmark=asked,
        label=label,
        items=tuple(pairs),
        readings=readings,
        in_format=_shares([(a.in_format, b.in_format) for a, b in pairs]),
        cut_off=_shares([(a.cut_off, b.cut_off) for a, b in pairs]),
        outcome=outcome,
        reason=reason,
        decided_by=decided_by,
    )


def _reading(name: str, pairs: Sequence[tuple[Item, Item]]) -> Reading | None:
    read = [(a.reading(name), b.reading(name), a) for a, b in pairs]
    both = [(x, y, item) for x, y, item in read if x is not None and y is not None]
    if not both:
        return None
    if len(both) < len(pairs):
        raise DataError(f"{pairs[0][0].benchmark}: {name} was read off some items only.")
    before, after = [x for x, _, _ in both], [y for _, y, _ in both]
    subjects = len({item.task for _, _, item in both}) >= MANY_TASKS
    clusters = [_cluster(item, subjects) for _, _, item in both]
    right_or_wrong = {*before, *after} <= {0.0, 1.0}
    return Reading(
        name=name,
        base=sum(before) / len(before),
        value=sum(after) / len(after),
        difference=paired_difference(before, after, clusters, rates=READINGS[name]),
        p_value=mcnemar([x == 1 for x in before], [y == 1 for y in after])
        if right_or_wrong
        else None,
    )


def _cluster(item: Item, subjects: bool) -> tuple[object, ...]:
    """The passage that items share, or their subject; else each stands alone."""
    if item.cluster is not None:
        return item.task, item.cluster
    return (item.task,) if subjects else (item.task, item.doc)


def _shares(values: Sequence[tuple[bool | None, bool | None]]) -> tuple[float, float] | None:
    told = [(a, b) for a, b in values if a is not None and b is not None]
    if not told:
        return None
    return sum(a for a, _ in told) / len(told), sum(b for _, b in told) / len(told)


def _outcome(readings: dict[str, Reading], asked: Asked, n: int) -> tuple[Outcome, str, str | None]:
    """The word, the sentence behind it, and the reading that it came from."""
    rates = [readings[name] for name in ("strict", "lenient", "choice") if name in readings]
    fallen = {name for name, reading in readings.items() if reading.fell}
    if "strict" in fallen:
        others = sorted(fallen - {"strict"})
        if others:
            return Outcome.KNOWLEDGE_LOST, _worse(["strict", *others]), "strict"
        held = [name for name in readings if name != "strict"]
        if held:
            return Outcome.FORMAT_LOST, f"strict fell, {_named(held)} held", "strict"
        why = "strict fell; nothing else was read that could say why"
        return Outcome.KNOWLEDGE_LOST, why, "strict"
    if lost := sorted(fallen & {"choice", "lenient"}):
        return Outcome.KNOWLEDGE_LOST, _worse(lost), lost[0]
    if risen := [reading.name for reading in rates if reading.rose]:
        return Outcome.GAINED, f"{_named(risen)} rose", risen[0]
    bits = readings.get("bits_per_byte")
    if bits is not None and all(_at_chance(rate, asked.chance, n) for rate in rates):
        # Where answers are no better than guessing, only the likelihood of the right one can tell.
        why = "bits per byte of the right answer {}" + (", answers are at chance" if rates else "")
        if bits.fell:
            return Outcome.KNOWLEDGE_LOST, why.format("rose"), bits.name
        if bits.rose:
            return Outcome.GAINED, why.format("fell"), bits.name
    spread = max((reading.difference.deviation for reading in rates), default=0.0)
    points = 100 * detectable_difference(spread, n)
    seen = f"; {points:.1f} points would mostly have shown" if points else ""
    return Outcome.KEPT, f"no sure change on {n:,} items{seen}", None


def _worse(names: Sequence[str]) -> str:
    """Which readings became worse, and in which direction that is."""
    rates = [name for name in names if READINGS[name]]
    bits = ", bits per byte rose" if len(rates) < len(names) else ""
    return f"{_named(rates)} fell{bits}"


def _named(names: Sequence[str]) -> str:
    return " and ".join(name.replace("_", " ") for name in names)


def _at_chance(reading: Reading, chance: float, n: int) -> bool:
    return wilson(round(reading.base * n), n).low <= chance
