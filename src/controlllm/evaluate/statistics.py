"""Is a difference real? Paired differences of the same items, intervals, and what could be seen.

| question | function | source |
|---|---|---|
| how far apart are two models on these items? | `paired_difference` | Miller, arXiv 2411.00640 |
| and on several independent sets, in the mean? | `mean_difference` | variances add up |
| and where scores are rates? | the same, `rates=True` | Bonett and Price 2012, with Student's t |
| do they differ in right and wrong at all? | `mcnemar` | McNemar 1947, exact |
| how sure is one rate? | `wilson` | Wilson 1927 |
| how sure is a number of a whole corpus (BLEU)? | `paired_bootstrap` | Efron 1979, percentiles |
| how small a difference could n items show? | `detectable_difference` | Miller, section 5 |
| which of several tests still count? | `holm` | Holm 1979 |
| is a drop within a margin, is a gain large enough? | `at_least` | non-inferiority |

Pure functions of numbers: nothing here knows models, tasks or files. Items that belong together
(the questions about one passage) are one cluster: they are right or wrong together, and count as
less than so many single items.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from statistics import NormalDist
from typing import Any

import numpy as np

from controlllm.common.errors import ConfigError, DataError

__all__ = [
    "Difference",
    "Interval",
    "Verdict",
    "at_least",
    "detectable_difference",
    "holm",
    "mcnemar",
    "mean_difference",
    "paired_bootstrap",
    "paired_difference",
    "wilson",
]


@dataclass(frozen=True)
class Interval:
    """An estimate and the range that holds the true value with a given probability."""

    estimate: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """All three for JSON, which knows no infinity: None where one is nowhere."""
        return {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.estimate:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class Difference:
    """How much higher the second model scores than the first, on the same items."""

    mean: float
    """Mean of second minus first."""
    standard_error: float
    """Of that mean; clustered where clusters were given."""
    num_items: int
    num_clusters: int
    """Independent groups of items; as many as items where none were given."""
    deviation: float
    """Standard deviation of the single differences."""
    center: float | None = None
    """Middle of the interval, where it is not the mean: of rates, drawn a little towards 0."""
    spread: float | None = None
    """Standard error around `center`; never 0 of rates, however few items differ."""

    def negated(self) -> "Difference":
        """How much higher the first model scores than the second."""
        return replace(self, mean=-self.mean, center=-self.around[0])

    @property
    def around(self) -> tuple[float, float]:
        """Middle and standard error of the interval."""
        center = self.mean if self.center is None else self.center
        return center, self.standard_error if self.spread is None else self.spread

    def interval(self, level: float = 0.95) -> Interval:
        """The range around the mean by Student's t, with one degree less than clusters.

        `level` is the probability that the range holds the true mean (ConfigError: not in 0 to 1).
        """
        from scipy.stats import t

        _check_share("level", level)
        if self.num_clusters < 2:
            return Interval(self.mean, -math.inf, math.inf)
        center, error = self.around
        wide = float(t.ppf(0.5 + level / 2, self.num_clusters - 1)) * error
        return Interval(self.mean, center - wide, center + wide)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    rates: bool = False,
) -> Difference:
    """The mean of `second - first` over items that both models were asked, and its standard error.

    Args:
        first: one score per item (0 and 1, or any number), of the model compared with.
        second: the same items' scores of the other model, in the same order.
        clusters: what each item belongs to (a passage, a subject); none = each stands alone.
        rates: whether scores are right and wrong, or shares. Then the interval counts one item more
            that was won and one that was lost (Bonett and Price 2012): where few items or none
            differ, the items' own spread would promise more than so many items can show.

    Raises:
        DataError: the lengths differ, there is no item, or a score is no finite number.
    """
    before, after = _scores("first", first), _scores("second", second)
    _require_equal_lengths(first=before, second=after, clusters=clusters)
    apart = after - before
    mean, n = float(apart.mean()), len(apart)
    sums, groups = _cluster_sums(apart - mean, clusters)
    # Items of one cluster vary together: their deviations are added up before they are squared.
    correction = groups / (groups - 1) if groups > 1 else 0.0
    error = math.sqrt(correction * float(np.square(sums).sum())) / n
    deviation = float(apart.std(ddof=1)) if n > 1 else 0.0
    if not rates:
        return Difference(mean, error, n, groups, deviation)
    center = mean * n / (n + 2)
    sums = np.concatenate([_cluster_sums(apart - center, clusters)[0], [1 - center, -1 - center]])
    spread = math.sqrt((groups + 2) / (groups + 1) * float(np.square(sums).sum())) / (n + 2)
    return Difference(mean, error, n, groups, deviation, center, spread)


def mean_difference(differences: Sequence[Difference]) -> Difference:
    """The mean of differences on sets that are independent of one another (DataError: of none)."""
    if not differences:
        raise DataError("there is no difference to take the mean of.")
    count = len(differences)
    middles, errors = zip(*(one.around for one in differences), strict=True)
    clusters = sum(one.num_clusters - 1 for one in differences) + 1  # degrees of freedom add up
    items = sum(one.num_items for one in differences)
    mean = sum(one.mean for one in differences) / count
    return Difference(mean, math.hypot(*errors) / count, items, clusters, 0.0, sum(middles) / count)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p-value that neither model is right more often than the other.

    Only items count that one model has right and the other wrong: under the hypothesis each falls
    to either side like a coin. (DataError: the lengths differ, or there is no item.)
    """
    from scipy.stats import binomtest

    before, after = _scores("first", first) != 0, _scores("second", second) != 0
    _require_equal_lengths(first=before, second=after)
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    return float(binomtest(min(lost, won), lost + won).pvalue) if lost + won else 1.0


def wilson(right: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's interval of a rate; it stays within 0 and 1, also for 0 or all of few items.

    (ConfigError: `level` is not in 0 to 1; DataError: no item, or more are right than there are.)
    """
    from scipy.stats import binomtest

    _check_share("level", level)
    if not 0 <= right <= total or total < 1:
        raise DataError(f"{right} right of {total} items is no rate.")
    found = binomtest(right, total).proportion_ci(level, method="wilson")
    return Interval(right / total, float(found.low), float(found.high))


def paired_bootstrap(
    statistic: Callable[[Sequence[int]], float],
    num_items: int,
    *,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The interval of a number that exists for a whole set of items only.

    Args:
        statistic: takes item numbers, which may repeat, and returns the number of these items: of
            one model, or the difference of two (then both see the same items, which pairs them).
        num_items: how many items there are.
        clusters: what each item belongs to; whole clusters are drawn.
        resamples: how often items are drawn anew.
        level: the probability that the range holds the true value, between 0 and 1.
        seed: of the draws.

    Raises:
        ConfigError: `level` is not between 0 and 1.
        DataError: there is no item, or `clusters` has another length.
    """
    _check_share("level", level)
    if num_items < 1:
        raise DataError("there is no item to draw.")
    numbers: dict[Hashable, list[int]] = {}
    for item, name in enumerate(range(num_items) if clusters is None else clusters):
        numbers.setdefault(name, []).append(item)
    if sum(map(len, numbers.values())) != num_items:
        raise DataError(f"clusters has {len(clusters or ())} entries for {num_items} items.")
    groups, generator = list(numbers.values()), np.random.default_rng(seed)
    drawn = generator.integers(len(groups), size=(resamples, len(groups)))
    found = [statistic([item for group in row for item in groups[group]]) for row in drawn]
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(statistic(range(num_items)), float(low), float(high))


def detectable_difference(
    deviation: float, num_items: int, *, significance: float = 0.05, power: float = 0.8
) -> float:
    """The smallest true difference that a comparison of so many items shows with this power.

    Args:
        deviation: standard deviation of the paired differences of single items; of right and wrong
            with a share d of discordant items and no difference, `sqrt(d)`.
        num_items: how many items are compared.
        significance: of the two-sided test.
        power: the probability that a difference of this size is seen.

    >>> round(100 * detectable_difference(0.2**0.5, 164), 1)  # HumanEval, 20 % discordant
    9.8

    Raises:
        ConfigError: `significance` or `power` is not between 0 and 1.
        DataError: there is no item.
    """
    _check_share("significance", significance)
    _check_share("power", power)
    if num_items < 1:
        raise DataError("there is no item to compare.")
    quantiles = NormalDist().inv_cdf(1 - significance / 2) + NormalDist().inv_cdf(power)
    return quantiles * deviation / math.sqrt(num_items)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, each made as large as asking so many questions makes it.

    A test whose value stays under the significance level counts; the probability that any of those
    counts by chance is then at most that level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = largest
    return adjusted


class Verdict(StrEnum):
    """What items can say of a bound."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


def at_least(interval: Interval, bound: float) -> Verdict:
    """Whether a difference is surely at or above a bound, surely below, or neither.

    A drop of at most 0.02 is a difference of at least -0.02 (non-inferiority); a gain of at least
    0.05 has the bound 0.05. Give an interval of level 0.9 for a one-sided test at 0.05.

    >>> at_least(Interval(-0.01, -0.015, -0.005), -0.02).value
    'PASS'
    >>> at_least(Interval(-0.01, -0.04, 0.02), -0.02).value
    'INCONCLUSIVE'
    """
    if interval.low >= bound:
        return Verdict.PASS
    return Verdict.FAIL if interval.high < bound else Verdict.INCONCLUSIVE


def _scores(name: str, values: Sequence[float]) -> np.ndarray[Any, Any]:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise DataError(f"{name} has no scores.")
    if not np.isfinite(scores).all():
        place = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise DataError(f"{name}[{place}]={values[place]} is no finite number.")
    return scores


def _require_equal_lengths(**values: Any) -> None:
    lengths = {name: len(value) for name, value in values.items() if value is not None}
    if len({*lengths.values()}) > 1:
        told = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise DataError(f"scores of the same items are compared, but there are: {told}.")


def _cluster_sums(
    values: np.ndarray[Any, Any], clusters: Sequence[Hashable] | None
) -> tuple[np.ndarray[Any, Any], int]:
    """The sum of each cluster's values, and how many clusters there are."""
    if clusters is None:
        return values, len(values)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    places = np.asarray([numbers[name] for name in clusters])
    return np.bincount(places, weights=values, minlength=len(numbers)), len(numbers)


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ConfigError(f"{name}={value!r} is out of range; allowed: between 0 and 1.")
