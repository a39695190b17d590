"""Batchers: every example once, soon, never over the limit, and the same after a restart."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from controlllm.common.storage.schema import check_record
from controlllm.data.config.data_config import DataConfig
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import Example
from controlllm.data.loader import batchers as batching
from controlllm.data.loader.batchers import (
    Batcher,
    BatcherState,
    Item,
    fill_ratio,
    item_capacity,
    make_batcher,
    redeal_batchers,
)
from controlllm.data.loader.collate import collate
from controlllm.data.loader.draws import Draw
from controlllm.data.loader.evaluation import read_examples

POOLS = {name: getattr(batching, name) for name in ("BATCHES", "ROWS", "TOKENS")}
CAPACITY = 32
BOS = 7
LENGTHS = st.lists(st.integers(2, CAPACITY), min_size=0, max_size=80)
KINDS: dict[str, dict[str, Any]] = {
    "best_fit": {"packing_lookahead": 5},
    "concat": {"packing_strategy": "concat"},
    "rows": {"packing": False},
    "grouped": {"packing": False, "group_by_length": True},
    "budget": {"packing": False, "max_tokens_per_batch": 70},
}
WHOLE = [kind for kind in KINDS if kind != "concat"]


@pytest.fixture(autouse=True, scope="module")
def small_pools() -> Iterator[None]:
    """Pools of a few batches, so that many are gone through."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("controlllm.data.loader.batchers.BATCHES", 3)
        patch.setattr("controlllm.data.loader.batchers.ROWS", 12)
        patch.setattr("controlllm.data.loader.batchers.TOKENS", 100)
        yield


def make_config(kind: str) -> DataConfig:
    return DataConfig(max_length=CAPACITY, **KINDS[kind])


class Draws:
    """Draw n has the length of n, and n in all its places above the token's number."""

    def __init__(self, lengths: list[int], start: int = 0) -> None:
        self.lengths = lengths
        self.drawn = start

    def at(self, number: int) -> Draw:
        """Draw n; again if a state says so."""
        ids = np.arange(self.lengths[number], dtype=np.int32) + 1000 * number
        labels = ids.copy()
        labels[0] = -100
        return Draw(number % 3, (number, 0, 0), Example(ids, labels))

    def __call__(self) -> Draw | None:
        """The next draw."""
        if self.drawn == len(self.lengths):
            return None
        self.drawn += 1
        return self.at(self.drawn - 1)


def make(kind: str, draws: Callable[[], Draw | None]) -> Batcher:
    return make_batcher(draws, make_config(kind), batch_size=4, seed=3)


def restore(kind: str, draws: Draws, state: BatcherState) -> Batcher:
    """As a lane does it: the references are read again."""
    batcher = make(kind, draws)
    waiting = []
    for source, number, *_ in state.waiting:
        assert source == number % 3
        waiting.append(draws.at(number))
    plain = json.loads(json.dumps(asdict(state)))
    batcher.load(check_record(plain, BatcherState, "a batcher"), waiting)
    return batcher


def items_of(batcher: Batcher) -> list[Item]:
    items = []
    while item := batcher.next():
        items.append(item)
    return items


def contents(items: list[Item]) -> list[list[list[tuple[int, list[int], list[int]]]]]:
    """Everything in items, as plain numbers."""
    return [
        [
            [(d.source, d.example.input_ids.tolist(), d.example.labels.tolist()) for d in slot]
            for slot in item
        ]
        for item in items
    ]


def numbers_of(item: Item) -> list[int]:
    """Which draws are in an item."""
    return [int(draw.example.input_ids[0]) // 1000 for slot in item for draw in slot]


@pytest.mark.parametrize("kind", WHOLE)
@given(lengths=LENGTHS)
@settings(deadline=None)
def test_every_example_once_and_whole(kind: str, lengths: list[int]) -> None:
    draws = Draws(lengths)
    items = items_of(make(kind, draws))
    seen = [number for item in items for number in numbers_of(item)]
    assert sorted(seen) == list(range(len(lengths)))
    for item in items:
        for slot in item:
            for draw in slot:
                wanted = draws.at(int(draw.example.input_ids[0]) // 1000)
                assert (draw.source, draw.start) == (wanted.source, 0)
                assert np.array_equal(draw.example.input_ids, wanted.example.input_ids)
                assert np.array_equal(draw.example.labels, wanted.example.labels)


@given(lengths=LENGTHS)
@settings(deadline=None)
def test_concat_predicts_every_token_once(lengths: list[int]) -> None:
    """Parts of a document come in order and share one token; only its first is not predicted."""
    items = items_of(make("concat", Draws(lengths)))
    parts: dict[int, list[Example]] = {}
    for item in items:
        for example in (draw.example for draw in item[0]):
            assert len(example) >= 2
            assert example.labels[0] == -100
            parts.setdefault(int(example.input_ids[0]) // 1000, []).append(example)
    assert sorted(parts) == list(range(len(lengths)))
    for number, examples in parts.items():
        for left, right in pairwise(examples):
            assert left.input_ids[-1] == right.input_ids[0]
        predicted = [t for e in examples for t in e.labels.tolist() if t != -100]
        assert predicted == [1000 * number + i for i in range(1, lengths[number])]


@given(
    lengths=st.lists(st.integers(2, 3 * CAPACITY), max_size=40),
    stop=st.integers(0, 12),
    lanes=st.integers(1, 3),
)
def test_rests_of_documents_with_bos_begin_with_it(
    lengths: list[int], stop: int, lanes: int
) -> None:
    """Dealt anew on the way; every token is predicted once, and no part is without a target."""

    def begins_with_bos(draw: Draw | None) -> Draw | None:
        if draw is not None:
            draw.example.input_ids[0] = BOS
        return draw

    draws = Draws(lengths)
    config = make_config("concat")
    batcher = make_batcher(lambda: begins_with_bos(draws()), config, 4, 3, BOS)
    items = [batcher.next() for _ in range(stop)]
    for lane, state in enumerate(redeal_batchers([batcher.state()], lanes)):
        left = iter(range(draws.drawn + lane, len(lengths), lanes))
        again = make_batcher(
            lambda left=left: begins_with_bos(next(map(draws.at, left), None)), config, 4, 3, BOS
        )
        waiting = [
            draw
            for _, number, *_ in state.waiting
            if (draw := begins_with_bos(draws.at(number))) is not None
        ]
        again.load(state, waiting)
        items += items_of(again)
    parts = [draw.example for item in items for slot in item for draw in slot]
    assert all(example.input_ids[0] == BOS and example.labels[0] == -100 for example in parts)
    assert all((example.labels != -100).any() for example in parts)
    assert all(sum(len(d.example) for d in slot) <= CAPACITY for item in items for slot in item)
    wanted = [1000 * n + i for n, length in enumerate(lengths) for i in range(1, length)]
    assert sorted(t for item in items for t in predicted(item)) == wanted


@given(lengths=LENGTHS)
@settings(deadline=None)
def test_concat_wastes_at_most_one_token(lengths: list[int]) -> None:
    """A document of which one token fits begins in the next slot: one token predicts nothing."""
    for item in items_of(make("concat", Draws(lengths)))[:-1]:
        assert sum(len(draw.example) for draw in item[0]) >= CAPACITY - 1


@pytest.mark.parametrize("kind", KINDS)
@given(lengths=LENGTHS)
@settings(deadline=None)
def test_nothing_is_over_its_limit(kind: str, lengths: list[int]) -> None:
    """In the tensors, padding included; and what is counted is in the tensors."""
    config = make_config(kind)
    batcher = make(kind, Draws(lengths))
    items = items_of(batcher)
    tokens = capacity = 0
    for item in items:
        batch = collate([[(d.example, 0) for d in slot] for slot in item], config, pad_id=0)
        room = batch["input_ids"].numel()
        assert room == item_capacity(item, config)
        capacity += room
        tokens += int((batch["origin"] >= 0).sum())
        if config.packing:
            assert room == CAPACITY
            first = batch["cu_seq_lens_q"][:-1].long()
            assert (batch["labels"][0, first] == -100).all()
        elif kind == "budget":
            assert room <= KINDS["budget"]["max_tokens_per_batch"]
        else:
            assert len(item) <= 4
    if items:
        assert fill_ratio(items, config) == tokens / capacity


@pytest.mark.parametrize(("kind", "most"), [("concat", 1), ("rows", 4), ("grouped", 12)])
@given(lengths=st.lists(st.integers(2, CAPACITY), min_size=1, max_size=120))
@settings(deadline=None)
def test_no_example_waits_for_ever(kind: str, most: int, lengths: list[int]) -> None:
    """Never are more draws made than fit into a batch, or a pool of 12 rows, before all go out."""
    draws = Draws(lengths)
    batcher = make(kind, draws)
    gone: set[int] = set()
    while item := batcher.next():
        gone.update(numbers_of(item))
        left = [number for number in range(draws.drawn) if number not in gone]
        assert not left or draws.drawn - left[0] <= most


def test_each_slot_begins_with_the_oldest_row() -> None:
    lengths = np.random.default_rng(0).integers(2, CAPACITY, 300).tolist()
    batcher, gone = make("best_fit", Draws(lengths)), set[int]()
    for item in items_of(batcher):
        numbers = numbers_of(item)
        assert numbers[0] == next(n for n in range(len(lengths)) if n not in gone)
        gone.update(numbers)


def test_no_row_is_left_over_by_two_pools() -> None:
    """Three rows of 16 are the shortest of a falling pool, then the longest of a rising one."""
    lengths = [16] * 3 + ([30] * 6 + [3] * 54) * 3
    draws = Draws(lengths)
    batcher = make("budget", draws)
    old: set[int] = set()
    while batcher.next():
        if not batcher.sizes:  # the end of a pool
            left = {draw.reference[0] for draw in batcher.waiting}
            assert not left & old
            old = left
    assert draws.drawn == len(lengths)


@pytest.mark.parametrize("kind", KINDS)
@given(lengths=LENGTHS, stop=st.integers(0, 30))
@settings(deadline=None)
def test_a_restored_batcher_goes_on_exactly(kind: str, lengths: list[int], stop: int) -> None:
    draws = Draws(lengths)
    batcher = make(kind, draws)
    for _ in range(stop):
        batcher.next()
    again = restore(kind, Draws(lengths, draws.drawn), batcher.state())
    assert again.state() == batcher.state()
    assert contents(items_of(again)) == contents(items_of(batcher))
    assert again.state() == batcher.state()


@pytest.mark.parametrize("kind", KINDS)
@given(
    lengths=st.lists(LENGTHS, min_size=1, max_size=4),
    stop=st.integers(0, 12),
    lanes=st.integers(1, 5),
)
@settings(deadline=None)
def test_dealing_anew_loses_and_doubles_nothing(
    kind: str, lengths: list[list[int]], stop: int, lanes: int
) -> None:
    """Lanes stop amid their pools, and another number of lanes gives out the rest."""
    flat = [length for lane in lengths for length in lane]
    starts = np.cumsum([0, *map(len, lengths)]).tolist()
    seen: list[int] = []
    states, undrawn = [], []
    for lane, own in enumerate(lengths):
        draws = Draws(flat[: starts[lane + 1]], starts[lane])
        batcher = make(kind, draws)
        for _ in range(stop + lane):
            seen += predicted(batcher.next())
        states.append(batcher.state())
        undrawn += list(range(draws.drawn, starts[lane] + len(own)))
    dealt = redeal_batchers(states, lanes)
    for lane, state in enumerate(dealt):
        left = iter(undrawn[lane::lanes])
        every = Draws(flat)
        batcher = restore(kind, every, state)
        batcher._draw = lambda left=left, every=every: (
            every.at(number) if (number := next(left, None)) is not None else None
        )
        for item in items_of(batcher):
            seen += predicted(item)
    assert sorted(seen) == [1000 * n + i for n, length in enumerate(flat) for i in range(1, length)]


def predicted(item: Item) -> list[int]:
    """Every target token of an item."""
    draws = (draw for slot in item for draw in slot)
    return [t for draw in draws for t in draw.example.labels.tolist() if t != -100]


def test_lanes_give_out_the_same_quantile_at_the_same_time() -> None:
    """Two lanes with the same distribution: their widths go up and down together."""
    random = np.random.default_rng(0)
    draws = [Draws(random.integers(2, CAPACITY, 600).tolist()) for _ in range(2)]
    config = make_config("grouped")
    costs = [[item_capacity(item, config) for item in items_of(make("grouped", d))] for d in draws]
    assert np.corrcoef(costs)[0, 1] > 0.6


REAL = {
    "sft/gsm8k/train.jsonl.gz": {"prompt": "question", "completion": "answer"},
    "sft/dolly2k/dolly_train.json.gz": {},
    "sft/gpteacher_codegen/codegen-instruct.json.gz": {"output": "response"},
    "sft/chat_dataset_zh_extra/code_qa_zh.json.gz": {},
}


@pytest.fixture(scope="module")
def real_examples(shared_data: Path) -> list[list[Example]]:
    """2,000 conversations of each of four real sets, of at most 4,096 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "minimind6400")
    config = DataConfig(max_length=4096)
    sources = [SourceConfig(str(shared_data / p), columns=columns) for p, columns in REAL.items()]
    return [read_examples(source, tokenizer, config, 2000)[0] for source in sources]


def drawn_at_random(sets: list[list[Example]], seed: int) -> Callable[[], Draw]:
    """One of the sets by its size, one of its examples, for ever."""
    pool = [(source, example) for source, examples in enumerate(sets) for example in examples]
    random = np.random.default_rng(seed)

    def draw() -> Draw:
        number = int(random.integers(len(pool)))
        return Draw(pool[number][0], (number, 0, 0), pool[number][1])

    return draw


def cut(example: Example, limit: int) -> Example:
    return Example(example.input_ids[:limit], example.labels[:limit])


@pytest.mark.parametrize("which", [[0], [1], [2], [3], [0, 1, 2, 3]])
def test_slots_of_4k_are_full_of_real_rows(
    real_examples: list[list[Example]], which: list[int]
) -> None:
    """By default, on each set alone and on all: at least 99 % of the first 100 slots is tokens."""
    draw = drawn_at_random([real_examples[i] for i in which], seed=0)
    config = DataConfig(max_length=4096)
    batcher = make_batcher(draw, config, 1, 0)
    assert fill_ratio([batcher.next() for _ in range(100)], config) > 0.99


@pytest.mark.parametrize(
    "settings", [{"group_by_length": True}, {"max_tokens_per_batch": 8192}], ids=str
)
def test_8_ranks_have_equal_work_on_real_rows(
    real_examples: list[list[Example]], settings: dict[str, Any]
) -> None:
    """Padded tokens of the costliest of 8 lanes per mean, over 256 steps; pools as they are."""
    sets = [[cut(example, 1024) for example in examples] for examples in real_examples[:3]]
    config = DataConfig(packing=False, max_length=1024, **settings)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in POOLS.items():
            patch.setattr(batching, name, value)
        lanes = [make_batcher(drawn_at_random(sets, lane), config, 8, 7) for lane in range(8)]
        steps = [[lane.next() for lane in lanes] for _ in range(256)]
    costs = np.array([[item_capacity(item, config) for item in step] for step in steps])
    ratios = costs.max(axis=1) / costs.mean(axis=1)
    assert ratios.mean() <= 1.05
    assert ratios.max() <= 1.5
    assert fill_ratio([item for step in steps for item in step], config) > 0.9
