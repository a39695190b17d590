"""Packing keeps every row exactly once; a batch tells documents apart as transformers expects."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.data.data_collator import DataCollatorWithFlattening

from controlllm.common.errors import DataError
from controlllm.common.losses import token_mask
from controlllm.data.examples.encode import Example
from controlllm.data.loader import packing
from controlllm.data.loader.collate import PADDING, model_inputs, packed_batch, padded_batch
from controlllm.data.loader.packing import choose_for_slot, fill_slots

CAPACITY = 32
LENGTHS = st.lists(st.integers(2, CAPACITY), min_size=1, max_size=60)


def example(length: int, first: int = 10) -> Example:
    ids = np.arange(first, first + length, dtype=np.int32)
    labels = ids.copy()
    labels[0] = -100
    return Example(ids, labels)


@given(LENGTHS)
def test_a_slot_takes_the_oldest_and_leaves_nothing_that_fits(lengths: list[int]) -> None:
    chosen = choose_for_slot(lengths, CAPACITY)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    room = CAPACITY - sum(lengths[i] for i in chosen)
    assert room >= 0
    assert all(lengths[i] > room for i in range(len(lengths)) if i not in chosen)


@given(st.lists(st.integers(2, CAPACITY), min_size=1, max_size=9))
def test_no_choice_fills_a_slot_better_and_none_as_good_is_older(lengths: list[int]) -> None:
    """Against trying all subsets with the oldest row."""
    others = range(1, len(lengths))
    subsets = [[0, *s] for n in range(len(lengths)) for s in combinations(others, n)]
    sums = [sum(lengths[i] for i in subset) for subset in subsets]
    best = max(total for total in sums if total <= CAPACITY)
    full = [subset for subset, total in zip(subsets, sums, strict=True) if total == best]
    assert choose_for_slot(lengths, CAPACITY) == min(full)


@given(LENGTHS)
def test_large_slots_take_what_is_far_from_their_end_by_age(lengths: list[int]) -> None:
    """A slot of 400 tokens of which the last 40 are chosen: a prefix, then the best sum."""
    lengths = lengths * 10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "CHOICE", 40)
        chosen = choose_for_slot(lengths, 400)
    room = 400 - sum(lengths[i] for i in chosen)
    assert room >= 0
    assert all(lengths[i] > room for i in range(len(lengths)) if i not in chosen)
    by_age = next((n for n, i in enumerate(chosen) if n != i), len(chosen))
    if sum(lengths) > 400:
        assert sum(lengths[:by_age]) > 400 - 40 - CAPACITY


@given(LENGTHS, st.integers(1, 10))
def test_every_row_is_packed_exactly_once(lengths: list[int], lookahead: int) -> None:
    slots = list(fill_slots(lengths, CAPACITY, lookahead))
    assert sorted(i for slot in slots for i in slot) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in slot) <= CAPACITY for slot in slots)


@given(LENGTHS, st.integers(1, 10))
def test_no_row_waits_for_ever(lengths: list[int], lookahead: int) -> None:
    """Each slot begins with the oldest row that is left."""
    left = set(range(len(lengths)))
    for slot in fill_slots(lengths, CAPACITY, lookahead):
        assert slot[0] == min(left)
        left -= set(slot)


def test_what_waits_is_a_fair_sample() -> None:
    """Neither short nor long rows pile up, so shares of a mix hold from the first batches on."""
    lengths = np.random.default_rng(0).integers(5, 500, 3000).tolist()
    slots = list(fill_slots(lengths, 1024, 64))
    half = [lengths[i] for slot in slots[: len(slots) // 2] for i in slot]
    assert np.mean(half) == pytest.approx(np.mean(lengths), rel=0.02)


@pytest.mark.parametrize(("shortest", "longest"), [(20, 400), (5, 60), (150, 255)])
def test_packing_is_tight(shortest: int, longest: int) -> None:
    """Also where many rows make a slot, and where rows are all about a fifth of it."""
    lengths = np.random.default_rng(0).integers(shortest, longest, 2000).tolist()
    slots = list(fill_slots(lengths, 1024, 64))
    assert len(slots) <= -(-sum(lengths) // 1024) * 1.005 + 1


def test_very_short_rows_fill_long_slots() -> None:
    """64 rows of 5 tokens are far from a slot of 4,096, so more of them wait."""
    slots = list(fill_slots([5] * 8190, 4096, 64))
    assert [len(slot) for slot in slots] == [819] * 10


@given(st.lists(LENGTHS.filter(lambda ls: sum(ls) <= CAPACITY), min_size=1, max_size=4))
def test_packed_batches(slots: list[list[int]]) -> None:
    members = [[(example(length, 10 * (i + 1)), 1) for i, length in enumerate(s)] for s in slots]
    batch = packed_batch(members, CAPACITY, pad_id=0)
    total = len(slots) * CAPACITY
    for key in ("input_ids", "labels", "position_ids", "origin"):
        assert batch[key].shape == (1, total), key
    ends = batch["cu_seq_lens_q"]
    assert ends.dtype == torch.int32 and ends[0] == 0 and ends[-1] == total
    assert torch.equal(ends, batch["cu_seq_lens_k"])
    assert batch["max_length_q"] == batch["max_length_k"] == int(ends.diff().max())
    starts = ends[:-1].long()
    assert (batch["position_ids"][0, starts] == 0).all()
    real = batch["origin"] != PADDING
    assert (batch["position_ids"][real] == 0).sum() == sum(map(len, slots))
    assert (batch["position_ids"][~real] == 0).all()
    assert torch.equal(token_mask({"position_ids": batch["position_ids"]}), real)
    assert (batch["labels"][0, starts] == -100).all()
    assert real.sum() == sum(map(sum, slots))
    assert (batch["labels"][~real] == -100).all()
    found = batch["input_ids"][real].tolist()
    assert found == [t for slot in members for e, _ in slot for t in e.input_ids.tolist()]


def test_full_slots_are_as_transformers_flattens_them() -> None:
    lengths = [5, 11, 16]
    batch = packed_batch([[(example(n), 0) for n in lengths]], CAPACITY, pad_id=0)
    flatten = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_position_ids=True)
    rows = [{"input_ids": e.tolist(), "labels": e.tolist()} for e in map(np.arange, lengths)]
    theirs = flatten([{k: [t + 10 for t in v] for k, v in row.items()} for row in rows])
    for key, value in theirs.items():
        assert torch.equal(torch.as_tensor(batch[key]), torch.as_tensor(value)), key


@given(LENGTHS)
def test_padded_batches(lengths: list[int]) -> None:
    batch = padded_batch([[(example(length), 2)] for length in lengths], CAPACITY, pad_id=7)
    width = batch["input_ids"].shape[1]
    assert width == min(-(-max(lengths) // 8) * 8, CAPACITY)
    for row, length in enumerate(lengths):
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (width - length)
        assert batch["input_ids"][row, length:].eq(7).all()
        assert batch["labels"][row, length:].eq(-100).all()
        assert batch["origin"][row].tolist() == [2] * length + [PADDING] * (width - length)


def test_padding_never_exceeds_the_limit() -> None:
    assert padded_batch([[(example(13), 0)]], 14, 0)["input_ids"].shape == (1, 14)


def test_a_model_gets_no_origin_and_no_cache() -> None:
    batch = padded_batch([[(example(4), 0)]], 8, 0)
    inputs = model_inputs(batch)
    assert set(inputs) == {"input_ids", "labels", "attention_mask", "use_cache"}
    assert inputs["use_cache"] is False
    assert "origin" in batch


def test_a_slot_over_its_capacity_is_refused() -> None:
    """A collator or plug-in that hands over too much must not write into the next slot."""
    with pytest.raises(DataError, match=r"slot 1 .* 33 tokens or more.*max_length=32"):
        packed_batch([[(example(4), 0)], [(example(30), 0), (example(3), 0)]], CAPACITY, 0)
