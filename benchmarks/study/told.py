"""Which cells of a study are told of each arm, and the numbers of them."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.study.measuring import AS_TRAINED, CHOSEN
from benchmarks.study.plan import Study
from benchmarks.study.records import Result

from controlllm.evaluate.forgetting.retention import worst

__all__ = ["Rates", "Told", "best_rate", "by_rate", "own_sets", "told", "yardstick"]

Rates = dict[float, list[Result]]
"""Cells by their rate."""


@dataclass(frozen=True)
class Told:
    """An arm at one setting: the rate that learned most of what was chosen on, all its seeds."""

    arm: str
    rate: float
    results: tuple[Result, ...]
    setting: str

    def values(self, name: str, number: str = "loss") -> list[float]:
        """One number of one set, of each seed; `rise` is what the loss rose by."""
        sets = [result["settings"][self.setting]["sets"][name] for result in self.results]
        return [one["loss"] - one["base"] if number == "rise" else one[number] for one in sets]

    def mean(self, name: str, number: str = "loss") -> float:
        """Their mean."""
        return statistics.mean(self.values(name, number))

    @property
    def own(self) -> list[str]:
        """The sets that the base wrote."""
        return own_sets(self.results[0])

    @property
    def moved(self) -> float:
        """KL(base || model) on what the base wrote, where it is largest: what budgets bound."""
        return max(self.mean(name, "kl") for name in self.own)

    @property
    def gain(self) -> float:
        """How far the loss on the new text fell, in nats per token."""
        return -self.mean("new", "rise")

    def ahead_of(self, other: "Told") -> list[float]:
        """How much more was learned than by another arm, of each seed that both have."""
        theirs = {r["seed"]: v for r, v in zip(other.results, other.values("new"), strict=True)}
        own = zip(self.results, self.values("new"), strict=True)
        return [theirs[r["seed"]] - value for r, value in own if r["seed"] in theirs]


def own_sets(result: Result) -> list[str]:
    """The sets that the base wrote: plain, and behind its chat template where it has one."""
    known = next(iter(result["settings"].values()))["sets"]
    return [name for name in known if name.startswith("own")]


def by_rate(results: Sequence[Result], arm: str, shift: str) -> Rates:
    """The cells of an arm on a shift, by their rate."""
    rates: Rates = {}
    for result in results:
        if (result["arm"], result["shift"]) == (arm, shift):
            rates.setdefault(result["rate"], []).append(result)
    return rates


def best_rate(rates: Rates, cost: Callable[[Sequence[Result]], float]) -> float:
    """The rate of the lowest cost; rates are compared by the seeds that all of them have.

    What is not a number costs more than all else, as of a model that has diverged.
    """
    shared = set.intersection(*({r["seed"] for r in found} for found in rates.values()))
    if not shared:
        return min(rates)
    return min(
        rates, key=lambda rate: worst([cost([r for r in rates[rate] if r["seed"] in shared])])
    )


def told(study: Study, results: Sequence[Result], shift: str, setting: str) -> Iterator[Told]:
    """Each arm at the rate whose mean loss on the chosen text is lowest at this setting."""

    def cost(found: Sequence[Result]) -> float:
        return statistics.mean(
            r["settings"][setting]["sets"][f"{CHOSEN}new"]["loss"] for r in found
        )

    for arm in study.arms:
        if rates := by_rate(results, arm, shift):
            rate = best_rate(rates, cost)
            yield Told(arm, rate, tuple(rates[rate]), setting)


def yardstick(study: Study, results: Sequence[Result], shift: str) -> Told | None:
    """The arm whose gain as trained the others' gains are shares of; None where it is not done."""
    arms = told(study, results, shift, AS_TRAINED)
    return next((one for one in arms if one.arm == study.yardstick), None)
