"""Arms where they cost the same, and where they have learned the same.

A dial is set on other text than is told, so arms at one budget stand at different KLs on what is
told. Here each is read between the settings that were measured: gain is taken to be linear in the
root of KL, as near the base KL grows with the square of what gain grows with. That holds for near
settings; between far ones the KL at which something is learned is told as lying between theirs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
from benchmarks.study.measuring import AS_TRAINED, CHOSEN
from benchmarks.study.plan import Study
from benchmarks.study.records import Result
from benchmarks.study.told import Rates, best_rate, by_rate, own_sets, yardstick
from numpy.typing import NDArray

from controlllm.evaluate import format_table

__all__ = ["Curve", "front_tables"]

RESAMPLES = 2000
LEARNED = (50, 80, 95)
"""Shares of the yardstick's gain, in per cent, at which KLs are told."""
FAR = 6.0
"""Settings whose KLs are further apart than by this factor are far from each other.

On stories260k what is read between 0.01 and 0.1 is 15 % off at 0.03.
"""

Numbers = NDArray[np.float64]
"""A number, then that of each resample of the documents (1 + RESAMPLES,); nan without documents."""


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
        """Of what is told of a cell, or of what was chosen on (`part` is CHOSEN).

        Where losses or KL are no finite numbers, as of a model that has diverged, is no setting.
        """
        nothing = np.zeros(1 + RESAMPLES)
        roots, gains = [nothing], [nothing]
        for setting in result["settings"]:
            own = [_means(result, setting, part + name)[2] for name in own_sets(result)]
            base, loss, _ = _means(result, setting, f"{part}new")
            root = np.sqrt(np.maximum(np.max(own, axis=0), 0))
            if np.isfinite(root[0] + loss[0]):
                roots.append(root)
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
        return np.where(np.isnan(self.roots[-1]), np.nan, best)

    def kl_at(self, gain: Numbers) -> tuple[Numbers, Numbers]:
        """Between which KLs so much is first gained: the same two but between far settings.

        Both are inf where it never is.
        """
        first = np.full_like(gain, np.inf)
        least, most = first.copy(), first.copy()
        for low, high, before, after in self._pieces():
            crossed = (before < gain) & (gain <= after) & (low < first)
            first = np.where(crossed, low, first)
            part = (gain - before) / np.where(crossed, after - before, 1)
            there = (low + (high - low) * part) ** 2
            far = (low > 0) & (high**2 > FAR * low**2)
            least = np.where(crossed, np.where(far, low**2, there), least)
            most = np.where(crossed, np.where(far, high**2, there), most)
        unknown = np.isnan(gain) | np.isnan(self.roots[-1])
        return np.where(unknown, np.nan, least), np.where(unknown, np.nan, most)

    def _pieces(self) -> Iterator[tuple[Numbers, Numbers, Numbers, Numbers]]:
        yield from zip(self.roots, self.roots[1:], self.gains, self.gains[1:], strict=False)


BySeed = Mapping[int, Numbers]


def front_tables(study: Study, results: Sequence[Result], shift: str) -> str | None:
    """Shares of the yardstick's gain at equal KL; then KLs at equal shares. A row for each arm.

    ± is half of what lies between the lowest and the highest seed, where there are two. In brackets
    stands the interval of 95 % over the documents, which are the same for all arms; seeds and rates
    stay as they are in it. It is told where each cell that it needs has its documents.
    """
    best = yardstick(study, results, shift)
    if best is None or not best.gain > 0:
        return None
    most = [np.mean([_as_trained(r, part) for r in best.results], axis=0) for part in ("", CHOSEN)]
    rates = {arm: found for arm in study.arms if (found := by_rate(results, arm, shift))}
    arms = {arm: _Arm(found, *most) for arm, found in rates.items()}
    gains, costs = ({arm: [arm] for arm in arms} for _ in range(2))
    for budget in study.budgets:
        shares = {arm: cells.shares_at(budget) for arm, cells in arms.items()}
        other = shares.get(str(study.compared_with), {})
        for arm, share in shares.items():
            ahead = {} if share is other else _apart(share, other)
            gains[arm] += [_shown(share, ".1f"), _shown(ahead, "+.1f")]
    for arm, cells in arms.items():
        gains[arm].append(_shown(cells.shares_as_trained(), ".1f"))
        costs[arm] += [_shown_between(cells.kls_at(learned)) for learned in LEARNED]
        costs[arm].append(cells.kl_as_trained())
    ahead_of = [(f"% at KL {b:g}", f"ahead of {study.compared_with}") for b in study.budgets]
    of_gains = ["arm", *chain(*ahead_of), "% as trained"]
    of_costs = ["arm", *(f"KL at {learned} %" for learned in LEARNED), "KL as trained"]
    told = ((of_gains, gains), (of_costs, costs))
    return "\n\n".join(format_table(headers, list(lines.values())) for headers, lines in told)


@dataclass(frozen=True)
class _Arm:
    """The cells of an arm on a shift, by their rate; and what the yardstick gains."""

    rates: Rates
    most: Numbers
    most_chosen: Numbers

    def shares_at(self, kl: float) -> BySeed:
        """Shares of the yardstick's gain, in per cent."""
        best = self._best(lambda one: -Curve.of(one, CHOSEN).gain_at(kl)[0])
        return {one["seed"]: 100 * Curve.of(one).gain_at(kl) / self.most for one in best}

    def kls_at(self, learned: float) -> list[tuple[Numbers, Numbers]]:
        """Between which KLs each seed has learned so many per cent of it."""
        share = learned / 100
        best = self._best(lambda one: Curve.of(one, CHOSEN).kl_at(share * self.most_chosen)[1][0])
        return [Curve.of(one).kl_at(share * self.most) for one in best]

    def shares_as_trained(self) -> BySeed:
        """What was learned without a dial, in per cent."""
        return {one["seed"]: 100 * _as_trained(one, "") / self.most for one in self._as_trained}

    def kl_as_trained(self) -> str:
        """KL there on each text that the base wrote."""
        cells = self._as_trained
        sets = [
            {one["seed"]: _means(one, AS_TRAINED, name)[2] for one in cells}
            for name in own_sets(cells[0])
        ]
        return " / ".join(_shown(by_seed, ".4f") for by_seed in sets)

    @property
    def _as_trained(self) -> list[Result]:
        return self._best(lambda one: -_as_trained(one, CHOSEN)[0])

    def _best(self, cost: Callable[[Result], float]) -> list[Result]:
        """The cells of the rate of the lowest cost, which reads what was chosen on."""
        return self.rates[best_rate(self.rates, lambda found: float(np.mean([*map(cost, found)])))]


def _apart(share: BySeed, other: BySeed) -> BySeed:
    """How far a seed is ahead of the same of another arm."""
    return {seed: share[seed] - other[seed] for seed in sorted(share.keys() & other.keys())}


def _shown(by_seed: BySeed, form: str) -> str:
    """Mean, spread over seeds and interval over documents; "-" where it is not reached."""
    seeds = np.array([one[0] for one in by_seed.values()])
    if not len(seeds) or not np.isfinite(seeds).all():
        return "-"
    spread = f" ± {np.ptp(seeds) / 2:{form.strip('+')}}" if len(seeds) > 1 else ""
    drawn = np.mean(list(by_seed.values()), axis=0)[1:]
    interval = ""
    if not np.isnan(drawn).any():
        low = np.quantile(drawn, 0.025, method="lower")
        high = np.quantile(drawn, 0.975, method="higher")
        interval = f" [{low:{form}}, {high:{form}}]"
    return f"{seeds.mean():{form}}{spread}{interval}"


def _shown_between(bounds: Sequence[tuple[Numbers, Numbers]]) -> str:
    """The KL of what is known to lie between two; the range of all seeds where they are far."""
    if any(low[0] < high[0] for low, high in bounds):
        least, most = min(low[0] for low, _ in bounds), max(high[0] for _, high in bounds)
        return f"{least:.3f} to {most:.3f}" if np.isfinite(most) else "-"
    return _shown({seed: low for seed, (low, _) in enumerate(bounds)}, ".4f")


def _as_trained(result: Result, part: str) -> Numbers:
    base, loss, _ = _means(result, AS_TRAINED, f"{part}new")
    return base - loss


def _means(result: Result, setting: str, name: str) -> tuple[Numbers, ...]:
    """Loss of the base, of the model, and KL, in nats per token of a set."""
    told = result["settings"][setting]["sets"][name]
    if "documents" not in told:
        unknown = np.full(RESAMPLES, np.nan)
        return tuple(np.array([told[number], *unknown]) for number in ("base", "loss", "kl"))
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
