import itertools
from fractions import Fraction
from math import comb

import pytest

from controlllm.common.errors import ConfigError, DataError
from controlllm.evaluate.code import mean_pass_at_k, pass_at_k


@pytest.mark.parametrize("samples", range(1, 8))
def test_it_is_the_share_of_choices_that_hold_one_that_passes(samples):
    for passed, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        drawn = [*itertools.combinations([True] * passed + [False] * (samples - passed), k)]
        assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, drawn)) / len(drawn))


@pytest.mark.parametrize(
    ("samples", "passed", "k"), [(1000, 3, 500), (10**5, 1, 10), (200, 190, 100)]
)
def test_it_is_exact_where_factorials_are_huge(samples, passed, k):
    exact = 1 - Fraction(comb(samples - passed, k), comb(samples, k))
    assert pass_at_k(samples, passed, k) == pytest.approx(float(exact), rel=1e-9)


def test_values_worked_out_by_hand():
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)  # 1 - 3/10
    assert pass_at_k(5, 2, 4) == 1.0
    assert pass_at_k(5, 0, 5) == 0.0
    assert mean_pass_at_k([(5, 2), (5, 0)], 2) == pytest.approx(0.35)


@pytest.mark.parametrize(("samples", "k"), [(1, 2), (10, 0), (0, 1), (3, -1)])
def test_k_must_fit_the_samples(samples, k):
    with pytest.raises(ConfigError, match=f"pass@{k} needs"):
        pass_at_k(samples, 0, k)


def test_counts_must_be_possible():
    with pytest.raises(DataError):
        pass_at_k(3, 4, 1)
    with pytest.raises(ConfigError, match="no tasks"):
        mean_pass_at_k([], 1)
