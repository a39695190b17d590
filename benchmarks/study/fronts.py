"""Arms where they cost the same, and where they have learned the same.

A dial is set on other text than is told, so arms at one budget stand at different KLs on what is
told. Here each is read between the settings that were measured: gain is taken to be linear in the
root of KL, as near the base KL grows with the square of what gain grows with.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from benchmarks.study.measuring import AS_TRAINED, CHOSEN
from benchmarks.study.plan import Study
from benchmarks.study.records import Result
from benchmarks.study.told import best_rate, by_rate, own_sets, yardstick
from numpy.typing import NDArray

from controlllm.evaluate import format_table

__all__ = ["Curve", "front_table"]

RESAMPLES = 2000
LEARNED = (50, 80, 95)
"""Shares of the yardstick's gain, in per cent, at which KLs are told."""

Numbers = NDArray[np.float64]
"""The number itself, then that of each resample of the documents (1 + RESAMPLES,)."""


@dataclass(frozen=True)
class Curve:
    """What a cell learned at which cost, at settings of its dial and at 0, the base.

    Attributes:
        roots: roots of KL on own text, in nats per token (settings, resamples), from low to high.
        gains: what is gained there (settings, resamples).
    """

    roots: NDArray[np.float64]
    gains: NDArray[np.float64]

    @classmethod
    def of(cls, result: Result, part: str = "") -> "Curve":
        """Of what is told of a cell, or of what was chosen on (`part` is "chosen ")."""
        roots, gains = [np.zeros(1 + RESAMPLES)], [np.zeros(1 + RESAMPLES)]
        for setting in result["settings"]:
            own = [_means(result, setting, part + name)[2] for name in own_sets(result)]
            base, loss, _ = _means(result, setting, f"{part}new")
            roots.append(np.sqrt(np.maximum(np.max(own, axis=0), 0)))
            gains.append(base - loss)
        order = np.argsort(roots, axis=0)
        return cls(*(np.take_along_axis(np.array(one), order, 0) for one in (roots, gains)))

    def gain_at(self, kl: float) -> Numbers:
        """The most that is gained at this KL or below."""
        root = np.sqrt(kl)
        best = np.where(self.roots <= root, self.gains, -np.inf).max(0)
        for low, high, gain, after in self._pieces():
            inside = (low < root) & (root < high)
            there = gain + (after - gain) * (root - low) / np.where(inside, high - low, 1)
            best = np.where(inside, np.maximum(best, there), best)
        return best

    def kl_at(self, gain: Numbers) -> Numbers:
        """The least KL at which so much is gained; inf where it never is."""
        least = np.full_like(gain, np.inf)
        for low, high, before, after in self._pieces():
            crossed = (before < gain) & (gain <= after)
            part = (gain - before) / np.where(crossed, after - before, 1)
            there = (low + (high - low) * part) ** 2
            least = np.where(crossed, np.minimum(least, there), least)
        return least

    def _pieces(self) -> "zip[tuple[Numbers, ...]]":
        return zip(self.roots, self.roots[1:], self.gains, self.gains[1:], strict=False)


Reading = Callable[[Result, str], Numbers]
"""A number of a cell, read of what is told ("") or of what was chosen on."""


def front_table(study: Study, results: Sequence[Result], shift: str) -> str | None:
    """Shares of the yardstick's gain at equal KL, and KLs at equal shares, of each arm.

    ± is half of what lies between the lowest and the highest seed; in brackets stands the interval
    of 95 % over the documents, the same of all arms, where each cell has them.
    """
    best = yardstick(study, results, shift)
    if best is None or best.gain <= 0:
        return None
    most = {
        part: np.mean([_as_trained(result, part) for result in best.results], axis=0)
        for part in ("", CHOSEN)
    }

    def share(budget: float) -> Reading:
        return lambda result, part: 100 * Curve.of(result, part).gain_at(budget) / most[part]

    def cost(learned: float) -> Reading:
        return lambda result, part: Curve.of(result, part).kl_at(learned / 100 * most[part])

    lines: dict[str, list[str]] = {arm: [arm] for arm in study.arms}
    headers = ["arm"]
    for budget in study.budgets:
        headers += [f"% at KL {budget:g}", f"ahead of {study.compared_with}"]
        read = {arm: _read(results, arm, shift, share(budget), -1) for arm in study.arms}
        other = read[str(study.compared_with)]
        for arm, values in read.items():
            apart = []
            if values and other and arm != study.compared_with:
                apart = [np.mean(values, axis=0) - np.mean(other, axis=0)]
            lines[arm] += [_told(values, ".1f"), _told(apart, "+.1f")]
    for learned in LEARNED:
        headers.append(f"KL at {learned} %")
        for arm in study.arms:
            lines[arm].append(_told(_read(results, arm, shift, cost(learned), 1), ".4f"))
    return format_table(headers, [line for line in lines.values() if set(line[1:]) != {"-"}])


def _read(
    results: Sequence[Result], arm: str, shift: str, reading: Reading, sign: int
) -> list[Numbers]:
    """A number of each seed, at the rate at which it is best on what was chosen on."""
    rates = by_rate(results, arm, shift)
    if not rates:
        return []
    rate = best_rate(
        rates, lambda found: sign * float(np.mean([reading(one, CHOSEN)[0] for one in found]))
    )
    return [reading(result, "") for result in rates[rate]]


def _told(values: Sequence[Numbers], form: str) -> str:
    """Mean, spread over seeds and interval over documents; "-" where it is not reached."""
    seeds = [float(one[0]) for one in values]
    if not seeds or not np.isfinite(seeds).all():
        return "-"
    spread = f" ± {(max(seeds) - min(seeds)) / 2:{form}}" if len(seeds) > 1 else ""
    drawn = np.mean(values, axis=0)[1:]
    interval = ""
    if np.isfinite(drawn).all() and np.ptp(drawn) > 0:
        low, high = np.quantile(drawn, [0.025, 0.975])
        interval = f" [{low:{form}}, {high:{form}}]"
    return f"{statistics.mean(seeds):{form}}{spread}{interval}"


def _as_trained(result: Result, part: str) -> Numbers:
    base, loss, _ = _means(result, AS_TRAINED, f"{part}new")
    return base - loss


def _means(result: Result, setting: str, name: str) -> tuple[Numbers, ...]:
    """Loss of the base, of the model, and KL, in nats per token of a set."""
    told = result["settings"][setting]["sets"][name]
    if "documents" not in told:
        return tuple(np.full(1 + RESAMPLES, told[number]) for number in ("base", "loss", "kl"))
    documents_D4 = np.array(told["documents"])
    tokens, *sums = (_drawn(name, len(documents_D4)) @ documents_D4).T
    return tuple(one / tokens for one in sums)


@cache
def _drawn(name: str, number: int) -> NDArray[np.float64]:
    """How often each document of a set counts: once, then as chance has it (resamples, number).

    It is the same for all cells, which pairs them.
    """
    chance = np.random.default_rng([number, *name.encode()])
    drawn = chance.multinomial(number, np.full(number, 1 / number), RESAMPLES)
    return np.vstack([np.ones(number), drawn])
