"""A gate's rules, judged on the items of an evaluation: PASS, FAIL, or not to be told yet.

A verdict needs the interval's end on the bound's side; with Holm's correction the ends lie at the
levels of his step-down test.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from controlllm.common.errors import ConfigError, DataError
from controlllm.common.registry import check_choice, nearest
from controlllm.evaluate.items.comparison import Change, compare_models
from controlllm.evaluate.items.records import READINGS, Evaluation
from controlllm.evaluate.judging.gate import ALL, Gate, Rule
from controlllm.evaluate.judging.measures import Measure, difference_of, numbers_of, share_of
from controlllm.evaluate.statistics import (
    Interval,
    Verdict,
    at_least,
    detectable_difference,
)

__all__ = ["Judgement", "Ruling", "judge", "judged_model"]

MOST_ITEMS = 10_000_000
"""More items than any benchmark will ever have: no number of items decides it."""


@dataclass(frozen=True)
class Ruling:
    """One rule on one benchmark.

    Attributes:
        rule: with the benchmark's and the suite's own names.
        value: the number that it bounds, and its interval; each end at the level of the verdict
            that it decides.
        num_items: how many items were looked at.
        verdict: what they say.
        items_to_decide: of an undecided rule about how many items would decide it, if the model is
            as it seems to be (80 % power); None where it is decided, or no number would.
    """

    rule: Rule
    value: Interval
    num_items: int
    verdict: Verdict
    items_to_decide: int | None


@dataclass(frozen=True)
class Judgement:
    """What a gate says of a model.

    Attributes:
        model: its label.
        rulings: one per rule and benchmark.
        verdict: FAIL if a rule is broken, PASS if all hold.
        reason: why, in a sentence.
    """

    model: str
    rulings: tuple[Ruling, ...]
    verdict: Verdict
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; an end of an interval that is nowhere is None."""
        rows = []
        for ruling in self.rulings:
            told = {key: value for key, value in asdict(ruling.rule).items() if value is not None}
            rows.append(
                {
                    "rule": told,
                    "value": ruling.value.to_dict(),
                    "num_items": ruling.num_items,
                    "verdict": ruling.verdict.value,
                    "items_to_decide": ruling.items_to_decide,
                }
            )
        return {
            "verdict": self.verdict.value,
            "reason": self.reason,
            "model": self.model,
            "rules": rows,
        }


def judge(evaluations: Sequence[Evaluation], gate: Gate, label: str | None = None) -> Judgement:
    """Judge a model by its items; nothing is loaded.

    Args:
        evaluations: all suites that it was asked.
        gate: the rules.
        label: of the model; None = "tuned", or the only one beside the base.

    Raises:
        ConfigError: a rule names a suite, a benchmark, a reading or a share that is not there (with
            the nearest), or the label is none.
        DataError: base and model were not asked the same.
    """
    places = [[*_places(evaluations, rule, n)] for n, rule in enumerate(gate.rules, 1)]
    named = {evaluation.suite: evaluation for place in places for evaluation, _ in place}
    labels = {suite: judged_model(one, label) for suite, one in named.items()}
    changes = {
        (suite, change.benchmark.name): change
        for suite, evaluation in named.items()
        for change in compare_models(evaluation, labels[suite])
    }
    asked: list[tuple[Rule, Measure]] = []
    for number, (rule, found) in enumerate(zip(gate.rules, places, strict=True), 1):
        meant = [(one.suite, name, changes[one.suite, name]) for one, name in found]
        asked += _measured(rule, meant, number)
    rulings = _rule(asked, gate)
    verdict, reason = _overall(rulings)
    return Judgement(" and ".join(dict.fromkeys(labels.values())), rulings, verdict, reason)


def judged_model(evaluation: Evaluation, label: str | None = None) -> str:
    """The label of the model that is judged.

    Raises:
        ConfigError: it is not there (with the nearest), or not said and several could be meant.
        DataError: there is no base, or nothing beside it.
    """
    labels = [model.label for model in evaluation.models if model.label != "base"]
    if len(labels) == len(evaluation.models) or not labels:
        raise DataError(
            f"suite {evaluation.suite} was asked of {', '.join(evaluation.items) or 'no model'} "
            "only: there is no base and trained model to compare. Evaluate both (--reference BASE "
            "where the model carries none)."
        )
    if label is not None:
        check_choice("model", label, labels)
        return label
    if "tuned" in labels or len(labels) == 1:
        return "tuned" if "tuned" in labels else labels[0]
    raise ConfigError(f"which model is meant? Say so: --model, one of {', '.join(labels)}.")


def _places(
    evaluations: Sequence[Evaluation], rule: Rule, number: int
) -> Iterator[tuple[Evaluation, str]]:
    """Where the benchmarks are that a rule names."""
    if rule.suite is not None:
        suites = [evaluation.suite for evaluation in evaluations]
        check_choice(f"rule {number}: suite", rule.suite, suites)
    suites_meant = [one for one in evaluations if rule.suite in (None, one.suite)]
    found = [
        (evaluation, asked.name)
        for evaluation in suites_meant
        for asked in evaluation.benchmarks
        if rule.benchmark in (ALL, asked.name)
    ]
    if not found:
        names = {asked.name for one in suites_meant for asked in one.benchmarks}
        check_choice(f"rule {number}: benchmark", rule.benchmark, names)
    if len(found) > 1 and rule.benchmark != ALL:
        suites = [evaluation.suite for evaluation, _ in found]
        raise ConfigError(
            f"rule {number}: {rule.benchmark} is in the suites {', '.join(suites)}; say which is "
            "meant: suite."
        )
    yield from found


def _measured(
    rule: Rule, found: Sequence[tuple[str, str, Change]], number: int
) -> list[tuple[Rule, Measure]]:
    measured = []
    for suite, name, change in found:
        measure = (
            difference_of(change, rule)
            if rule.reading is not None
            else share_of(change.items, rule)
        )
        if measure is not None:
            measured.append((replace(rule, suite=suite, benchmark=name), measure))
    if not measured:
        there = sorted({one for _, _, change in found for one in numbers_of(change)})
        known = ", ".join(there) or "nothing"
        where = "no benchmark" if rule.benchmark == ALL else rule.benchmark
        verb = "has" if rule.benchmark == ALL else "has no"
        raise ConfigError(
            f"rule {number}: {where} {verb} {rule.what}; it was read off the items: {known}."
            f"{nearest(rule.what, there)}"
        )
    return measured


def _rule(asked: Sequence[tuple[Rule, Measure]], gate: Gate) -> tuple[Ruling, ...]:
    bounds = [measure.turned(rule.bound) for rule, measure in asked]
    below = [one.p_value(bound) for (_, one), bound in zip(asked, bounds, strict=True)]
    errors_low = _errors(below, gate)
    errors_high = _errors([1 - p for p in below], gate)
    rulings = []
    for (rule, measure), bound, low, high in zip(
        asked, bounds, errors_low, errors_high, strict=True
    ):
        wide = measure.interval(1 - 2 * low)
        found = Interval(wide.estimate, wide.low, measure.interval(1 - 2 * high).high)
        verdict = at_least(found, bound)
        need = _items_to_decide(measure, found.estimate - bound, low, high)
        rulings.append(
            Ruling(
                rule=rule,
                value=_as_the_rule_has_it(measure, found),
                num_items=measure.num_items,
                verdict=verdict,
                items_to_decide=need if verdict is Verdict.INCONCLUSIVE else None,
            )
        )
    return tuple(rulings)


def _errors(p_values: Sequence[float], gate: Gate) -> list[float]:
    """The probability of error that each test is held to."""
    error = 1 - gate.level
    if gate.correction == "none":
        return [error] * len(p_values)
    held, last = [0.0] * len(p_values), None
    for rank, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        # From the first test on that fails, all others are held to its level, and fail as well.
        held[number] = error / (len(p_values) - rank) if last is None else last
        if last is None and p_values[number] > held[number]:
            last = held[number]
    return held


def _as_the_rule_has_it(measure: Measure, found: Interval) -> Interval:
    if not measure.mirrored:
        return found
    return Interval(*map(measure.turned, (found.estimate, found.high, found.low)))


def _items_to_decide(measure: Measure, apart: float, low: float, high: float) -> int | None:
    if apart == 0 or not measure.deviation:
        return None
    error = low if apart > 0 else high
    shown_by_one = detectable_difference(measure.deviation, 1, significance=2 * error)
    needed = (shown_by_one / apart) ** 2
    return math.ceil(needed) if needed < MOST_ITEMS else None


def _overall(rulings: Sequence[Ruling]) -> tuple[Verdict, str]:
    total = len(rulings)
    broken = [one for one in rulings if one.verdict is Verdict.FAIL]
    open_ = [one for one in rulings if one.verdict is Verdict.INCONCLUSIVE]
    if broken:
        told = "; ".join(_told(one) for one in broken[:3])
        more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
        return Verdict.FAIL, f"{len(broken)} of {total} rules broken: {told}{more}"
    if open_:
        told = "; ".join(_told(one) for one in open_[:3])
        more = f"; and {len(open_) - 3} more" if len(open_) > 3 else ""
        return Verdict.INCONCLUSIVE, (
            f"no rule is surely broken, but {len(open_)} of {total} cannot be told on these items: "
            f"{told}{more}"
        )
    return Verdict.PASS, "the one rule holds" if total == 1 else f"all {total} rules hold"


def _told(ruling: Ruling) -> str:
    """A rule and what was found, in points where both are shares."""
    rule, found = ruling.rule, ruling.value
    asked = {"not_below": "not below", "at_least": "at least", "not_above": "not above"}[rule.kind]
    is_rate = READINGS.get(rule.what, True)
    scale, digits, sign = (100, 1, "+") if is_rate else (1, 3, "+")
    unit = " points" if is_rate else " bits"
    if rule.share is not None:
        sign, unit = "", " %"
    value, low, high = (
        f"{scale * number:{sign}.{digits}f}" for number in (found.estimate, found.low, found.high)
    )
    bound = f"{scale * rule.bound:{sign}g}"
    name = rule.what.replace("_", " ")
    return f"{rule.benchmark} {name} {value}{unit} ({low} to {high}), asked: {asked} {bound}{unit}"
