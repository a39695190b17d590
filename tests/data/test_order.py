"""Orders of chunks: permutations in constant memory, the same however they are asked for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlllm.data.loader.shuffle import Order, Phased, Shuffled, permute, random_below


@given(size=st.integers(1, 3000), seed=st.lists(st.integers(0, 2**32), min_size=1, max_size=3))
def test_a_permutation_has_every_element_once(size: int, seed: list[int]) -> None:
    assert sorted(permute(np.arange(size), size, seed)) == list(range(size))


@given(size=st.integers(1, 5000), epochs=st.integers(1, 3), data=st.data())
def test_each_epoch_has_every_chunk_once_in_any_order_of_asking(
    size: int, epochs: int, data: st.DataObject
) -> None:
    order = Shuffled(size, [7])
    numbers = list(range(size * epochs))
    some = data.draw(st.permutations(numbers[: 50 * epochs]))
    asked = {number: order.chunk(number) for number in some}
    straight = [Shuffled(size, [7]).chunk(number) for number in some]
    assert list(asked.values()) == straight
    for epoch in range(epochs):
        chunks = [order.at(epoch, position) for position in range(size)]
        assert sorted(chunks) == list(range(size))


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return [Shuffled(50, [seed]).at(number, position) for position in range(50)]

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0)]
    assert len({tuple(order) for order in orders}) == 3
    assert epoch(0, 1) == epoch(0, 1)


def test_every_element_is_equally_often_at_every_place() -> None:
    """Chi-square over 4,200 seeds of 7 elements: 49 cells with 600 expected in each."""
    counts = np.zeros((7, 7))
    for seed in range(4200):
        counts[np.arange(7), permute(np.arange(7), 7, [seed])] += 1
    chi_square = ((counts - 600) ** 2 / 600).sum()
    assert chi_square < 36 + 5 * np.sqrt(2 * 36)  # mean and deviation with 6 * 6 degrees of freedom


def test_neighbours_do_not_stay_neighbours() -> None:
    order = Shuffled(1_000_000, [3])
    chunks = [order.chunk(number) for number in range(2000)]
    near = sum(abs(a - b) < 1000 for a, b in pairwise(chunks))
    assert near < 20  # about 4 are expected by chance


def test_twenty_million_chunks_need_no_more_memory_than_twenty() -> None:
    import tracemalloc

    tracemalloc.start()
    order = Shuffled(20_000_000, [0])
    assert len({order.chunk(number) for number in range(3000)}) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_phases_come_in_order_and_are_shuffled_inside() -> None:
    order: Order = Phased([3, 0, 4], [1])
    for epoch in range(3):
        chunks = [order.at(epoch, position) for position in range(order.size)]
        assert sorted(chunks[:3]) == [0, 1, 2]
        assert sorted(chunks[3:]) == [3, 4, 5, 6]


def test_in_order_is_in_order() -> None:
    assert [Order(3).chunk(number) for number in range(7)] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_random_below_stays_below_and_reaches_all(limit: int) -> None:
    values = [random_below(limit, 5, turn) for turn in range(20 * limit)]
    assert min(values) >= 0 and max(values) == limit - 1
