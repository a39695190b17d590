"""Paired statistics: values of scipy, formulas written out, and what simulated worlds say."""

import math

import numpy as np
import pytest
from scipy import stats

from controlllm.common.errors import ConfigError, DataError
from controlllm.evaluate.statistics import (
    Interval,
    Verdict,
    at_least,
    detectable_difference,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_difference,
    wilson,
)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_alone_it_is_the_paired_t_test(random: np.random.Generator) -> None:
    before, after = random.normal(size=40), random.normal(0.2, size=40)
    found = paired_difference(before.tolist(), after.tolist())
    expected = stats.ttest_rel(after, before)
    interval, theirs = found.interval(), expected.confidence_interval()
    assert found.mean == pytest.approx((after - before).mean())
    assert found.mean / found.standard_error == pytest.approx(expected.statistic)
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high))
    assert found.deviation == pytest.approx((after - before).std(ddof=1))


def test_clusters_are_summed_before_they_are_squared() -> None:
    before, after = [0, 0, 0, 0, 0], [1, 1, 0, -1, 0]
    found = paired_difference(before, after, clusters=["a", "a", "b", "c", "c"])
    # The mean is 0.2; deviations by cluster: 1.6, -0.2, -1.4.
    squares = 1.6**2 + 0.2**2 + 1.4**2
    assert found.standard_error == pytest.approx(math.sqrt(3 / 2 * squares) / 5)
    assert (found.num_items, found.num_clusters) == (5, 3)


def test_copies_of_an_item_tell_nothing_new(random: np.random.Generator) -> None:
    before, after = random.random(30), random.random(30)
    single = paired_difference(before.tolist(), after.tolist())
    names = np.repeat(np.arange(30), 7).tolist()
    copied = paired_difference(
        np.repeat(before, 7).tolist(), np.repeat(after, 7).tolist(), clusters=names
    )
    assert copied.standard_error == pytest.approx(single.standard_error)
    assert copied.interval().high == pytest.approx(single.interval().high)


@pytest.mark.parametrize("clusters", [None, 12])
def test_intervals_hold_the_true_mean_as_often_as_they_say(
    random: np.random.Generator, clusters: int | None
) -> None:
    """400 worlds of 96 right-or-wrong items; the items of a cluster share their luck."""
    held, worlds = 0, 400
    for _ in range(worlds):
        names = np.arange(96) % (clusters or 96)
        luck = random.normal(0, 0.6, clusters or 96)[names]
        before = (random.normal(luck) > 0).astype(float)
        after = (random.normal(luck + 0.4) > 0).astype(float)
        found = paired_difference(
            before.tolist(), after.tolist(), clusters=names.tolist() if clusters else None
        ).interval()
        spread = math.sqrt(1 + 0.6**2)
        truth = stats.norm.cdf(0.4 / spread) - 0.5
        held += found.low <= truth <= found.high
    assert 0.92 <= held / worlds <= 0.98


def test_without_clusters_shared_luck_would_look_like_certainty(
    random: np.random.Generator,
) -> None:
    names = np.repeat(np.arange(10), 20)
    after = random.normal(size=10)[names] + 0.1 * random.normal(size=200)
    blind = paired_difference([0] * 200, after.tolist())
    seeing = paired_difference([0] * 200, after.tolist(), clusters=names.tolist())
    assert seeing.standard_error > 3 * blind.standard_error


def test_mcnemar_counts_what_flipped() -> None:
    before = [True] * 10 + [False] * 3 + [True] * 50
    after = [False] * 10 + [True] * 3 + [True] * 50
    tail = sum(math.comb(13, k) for k in range(4)) / 2**13
    assert mcnemar(before, after) == pytest.approx(2 * tail)
    assert mcnemar([True, False], [True, False]) == 1.0


def test_mcnemar_is_rarely_wrong_where_nothing_changed(random: np.random.Generator) -> None:
    found = []
    for _ in range(400):
        before, after = random.random((2, 60)) > 0.4
        found.append(mcnemar(before.tolist(), after.tolist()))
    assert np.mean(np.asarray(found) <= 0.05) <= 0.06


def test_wilson_stays_within_a_rate() -> None:
    z = stats.norm.ppf(0.975)
    middle = (0 + z**2 / 2) / (10 + z**2)
    wide = z / (10 + z**2) * math.sqrt(z**2 / 4)
    found = wilson(0, 10)
    assert (found.low, found.high) == pytest.approx((0, middle + wide), abs=1e-12)
    assert wilson(10, 10).high == pytest.approx(1)
    assert wilson(7, 10).estimate == 0.7


def test_the_bootstrap_of_a_mean_is_its_t_interval(random: np.random.Generator) -> None:
    values = random.normal(1.0, 2.0, size=300)
    found = paired_bootstrap(lambda items: float(values[list(items)].mean()), 300)
    error = values.std(ddof=1) / math.sqrt(300)
    assert found.estimate == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_the_bootstrap_draws_whole_clusters() -> None:
    def pieces(items: object) -> float:
        drawn = list(items)  # type: ignore[call-overload]
        # Items 2k and 2k + 1 come together.
        assert all(drawn.count(item) == drawn.count(item ^ 1) for item in drawn)
        return float(len(drawn))

    found = paired_bootstrap(pieces, 6, clusters=["a", "a", "b", "b", "c", "c"], resamples=50)
    assert (found.low, found.high) == (6, 6)


@pytest.mark.parametrize(
    ("items", "points"),
    [(164, 9.8), (378, 6.4), (448, 5.9), (1172, 3.7), (1319, 3.4), (14042, 1.1)],
)
def test_what_the_benchmarks_could_show(items: int, points: float) -> None:
    """In points: paired, 20 % discordant, power 0.8."""
    assert 100 * detectable_difference(math.sqrt(0.2), items) == pytest.approx(points, abs=0.06)


def test_a_difference_of_that_size_is_seen_that_often(random: np.random.Generator) -> None:
    size = detectable_difference(1.0, 80)
    seen = 0
    for _ in range(400):
        after = random.normal(size, 1.0, size=80)
        low = paired_difference([0.0] * 80, after.tolist()).interval().low
        seen += low > 0
    assert 0.74 <= seen / 400 <= 0.86


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.02, 0.5, "PASS"), (-0.5, -0.03, "FAIL"), (-0.021, -0.02, "INCONCLUSIVE")],
)
def test_a_bound_is_kept_broken_or_open(low: float, high: float, expected: str) -> None:
    assert at_least(Interval((low + high) / 2, low, high), -0.02) is Verdict(expected)


def test_one_item_proves_nothing() -> None:
    found = paired_difference([0], [1])
    assert found.interval() == Interval(1.0, -math.inf, math.inf)
    assert at_least(found.interval(), 0.0) is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([1], [1, 2]), "first 1, second 2"),
        (lambda: paired_difference([1, 2], [1, 2], clusters=["a"]), "clusters 1"),
        (lambda: paired_difference([], []), "first has no scores"),
        (lambda: paired_difference([1, 2], [1, math.nan]), r"second\[1\]=nan"),
        (lambda: mcnemar([True], []), "second has no scores"),
        (lambda: wilson(3, 2), "3 right of 2 items"),
        (lambda: paired_bootstrap(lambda items: 0.0, 0), "no item"),
        (lambda: paired_bootstrap(lambda items: 0.0, 2, clusters=["a"]), "1 entries for 2"),
        (lambda: detectable_difference(1.0, 0), "no item"),
    ],
)
def test_what_is_no_comparison_is_refused(call: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()  # type: ignore[operator]


def test_levels_are_shares() -> None:
    with pytest.raises(ConfigError, match=r"level=95 is out of range"):
        wilson(1, 2, level=95)
    with pytest.raises(ConfigError, match=r"power=1\.0 is out of range"):
        detectable_difference(1.0, 10, power=1.0)


@pytest.mark.parametrize("num_items", [10, 20, 50, 100, 200])
@pytest.mark.parametrize("margin", [0.02, 0.05])
def test_few_items_do_not_pass_a_gate_by_chance(num_items, margin):
    """The worst case: a base that is always right, and a true drop just beyond the margin."""
    generator = np.random.default_rng(num_items)
    passed = 0
    for _ in range(400):
        after = (generator.random(num_items) > margin + 0.001).astype(float)
        found = paired_difference(np.ones(num_items), after, rates=True).interval(0.9)
        passed += at_least(found, -margin) is Verdict.PASS
    assert passed / 400 <= 0.09


def test_where_no_item_differs_the_interval_is_that_of_so_many_items():
    widths = []
    for num_items in (1, 10, 100, 10_000):
        found = paired_difference([1.0] * num_items, [1.0] * num_items, rates=True)
        low, high = found.interval().low, found.interval().high
        assert found.mean == 0 and low == -high < 0
        widths.append(high)
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.001
    assert paired_difference([0.5] * 9, [0.5] * 9).interval().high == 0  # No rates: as before.


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (3, 1), (12, 30), (200, 10)])
def test_rates_are_those_of_bonett_and_price(won, lost):
    """With one item more on either side, by their formula."""
    n = 400
    first = [0.0] * won + [1.0] * (n - won)
    second = [1.0] * (n - lost) + [0.0] * lost
    up, down = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    error = math.sqrt((up + down - (up - down) ** 2) / (n + 1))  # n + 1: of Student's t.
    found = paired_difference(first, second, rates=True)
    assert found.around == pytest.approx((up - down, error))
