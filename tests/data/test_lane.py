"""Lanes: every row of every epoch once, on any number of lanes, over any number of restarts."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.common.storage.schema import check_record
from controlllm.data.config.data_config import DataConfig
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import Example, RowEncoder, SourceStats
from controlllm.data.loader.lane import Lane, LaneState, Pipeline, redeal
from controlllm.data.loader.mixing import plan_shares
from controlllm.data.loader.shuffle import Shuffled
from controlllm.data.loader.stream import Feed
from controlllm.data.sources import Chunks, Located, MemoryChunks

LIMIT = 16


@pytest.fixture(autouse=True, scope="module")
def small_pools() -> Iterator[None]:
    """Pools of 16 rows instead of 2,048, so that many are gone through."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("controlllm.data.loader.batchers.ROWS", 16)
        patch.setattr("controlllm.data.loader.batchers.TOKENS", 64)
        yield


class Numbered(Chunks):
    """Chunks of given sizes whose rows are examples that tell their chunk and row."""

    def __init__(self, sizes: list[int], rows_known: bool) -> None:
        self.sizes = sizes
        self.num_rows = sum(sizes) if rows_known else None

    @property
    def fingerprint(self) -> str:
        """Of the sizes."""
        return repr(self.sizes)

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self.sizes)

    def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
        """Rows `[chunk, row]`, longer with the row's number."""
        for row in range(start, self.sizes[chunk]):
            ids = np.array([chunk, row] + [0] * (row % 7), dtype=np.int32)
            yield f"{chunk}:{row}", Example(ids, ids)


def make_feed(sizes: list[int], epochs: int | None, buffer: int, name: str = "a") -> Feed:
    chunks = Numbered(sizes, rows_known=max(sizes) == 1)
    numbers = None if epochs is None else epochs * len(sizes)
    return Feed(name, chunks, Shuffled(len(sizes), [3]), None, numbers, buffer)


def make_lanes(
    count: int, feeds: list[Feed], states: list[Any] | None = None, **settings: Any
) -> list[Lane]:
    sources = [SourceConfig(feed.name, weight=1 + i) for i, feed in enumerate(feeds)]
    packed = {"packing_lookahead": 4} if settings.get("packing", True) else {}
    config = DataConfig(train=sources, max_length=LIMIT, **packed | {"mix_by": "rows"} | settings)
    plan = plan_shares(config, None)
    pipeline = Pipeline(feeds, plan, config, batch_size=3, seed=5)
    lanes = [Lane(pipeline, number, count) for number in range(count)]
    for lane, state in zip(lanes, states or [], strict=False):
        plain = json.loads(json.dumps(asdict(state)))
        lane.load(check_record(plain, LaneState, "a lane"))
    return lanes


def rows_of(item: Any) -> list[tuple[int, int, int]]:
    """(source, chunk, row) of everything in an item."""
    return [(d.source, *d.example.input_ids[:2].tolist()) for slot in item for d in slot]


def contents(item: Any) -> list[Any]:
    """Everything in an item, as plain numbers."""
    return [
        [(d.source, d.start, d.example.input_ids.tolist(), d.example.labels.tolist()) for d in slot]
        for slot in item
    ]


BATCHING = [
    {},
    {"packing": False},
    {"packing": False, "group_by_length": True},
    {"packing": False, "max_tokens_per_batch": 40},
]


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    by_row=st.booleans(),
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    steps=st.lists(st.integers(0, 6), min_size=4, max_size=4),
    buffer=st.sampled_from([0, 1, 5]),
    batching=st.sampled_from(BATCHING),
)
@settings(deadline=None, max_examples=150)
def test_each_row_of_each_epoch_once_whatever_the_lanes(
    sizes: list[int],
    by_row: bool,
    counts: list[int],
    steps: list[int],
    buffer: int,
    batching: dict[str, Any],
) -> None:
    """Some lanes give out some items, then another number of lanes goes on, and so forth."""
    sizes = [1] * sum(sizes) if by_row else sizes
    feeds = [make_feed(sizes, epochs=2, buffer=0 if by_row else buffer)]
    given_out: Counter[tuple[int, int, int]] = Counter()
    states: list[Any] | None = None
    for count, step in zip(counts, steps, strict=False):
        lanes = make_lanes(count, feeds, redeal(states, count) if states else None, **batching)
        for number, lane in enumerate(lanes):
            for _ in range(step + number % 2):  # lanes need not be in step
                given_out.update(rows_of(lane.next()))
        states = [lane.state() for lane in lanes]
    for lane in make_lanes(3, feeds, redeal(states or [], 3), **batching):
        while item := lane.next():
            given_out.update(rows_of(item))
    wanted = {(0, chunk, row) for chunk, size in enumerate(sizes) for row in range(size)}
    assert given_out == Counter(dict.fromkeys(wanted, 2))


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    buffer=st.sampled_from([0, 7]),
    stop=st.integers(0, 30),
    batching=st.sampled_from([*BATCHING, {"packing_strategy": "concat"}]),
)
@settings(deadline=None, max_examples=50)
def test_a_restored_lane_goes_on_exactly(
    sizes: list[int], buffer: int, stop: int, batching: dict[str, Any]
) -> None:
    feeds = [make_feed(sizes, None, buffer), make_feed([1] * 5, None, 0, "b")]
    (straight,) = make_lanes(1, feeds, **batching)
    for _ in range(stop):
        straight.next()
    (again,) = make_lanes(1, feeds, [straight.state()], **batching)
    for _ in range(12):
        ours, theirs = straight.next(), again.next()
        assert contents(ours) == contents(theirs)
    assert straight.state() == again.state()


def counted(states: list[Any], source: int) -> SourceStats:
    """What all lanes together have counted of a source."""
    total = SourceStats()
    for state in states:
        total.add(state.mixer.streams[source].stats)
    return total


@given(
    counts=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    steps=st.lists(st.integers(0, 8), min_size=4, max_size=4),
    batching=st.sampled_from(BATCHING),
)
@settings(deadline=None, max_examples=40)
def test_counts_stay_whole_whatever_the_lanes(
    pico_tokenizer: PreTrainedTokenizerBase,
    counts: list[int],
    steps: list[int],
    batching: dict[str, Any],
) -> None:
    """Dealt to another number of lanes, all that was counted is counted still, and once."""
    rows = [(str(i), {"text": "x" * (i % 9 + 1)} if i % 5 else {"text": None}) for i in range(60)]
    feeds = []
    for number, size in enumerate((60, 23)):
        source = SourceConfig("ab"[number], on_bad_row="skip")
        encoder = RowEncoder(source, pico_tokenizer, DataConfig(max_length=LIMIT), training=True)
        chunks = MemoryChunks(rows[:size], str(number))
        feeds.append(Feed(source.path, chunks, Shuffled(size, [number]), encoder, 2 * size, 0))
    states: list[Any] | None = None
    for count, step in zip(counts, steps, strict=False):
        dealt = redeal(states, count) if states else None
        if states and dealt:
            for number in range(2):
                assert counted(dealt, number) == counted(states, number)
        lanes = make_lanes(count, feeds, dealt, **batching)
        if states:  # What had been read and waits is read again, but not counted again.
            loaded = [lane.state() for lane in lanes]
            for number in range(2):
                assert counted(loaded, number) == counted(states, number)
        for lane in lanes:
            for _ in range(step):
                lane.next()
        states = [lane.state() for lane in lanes]
    lanes = make_lanes(3, feeds, redeal(states or [], 3), **batching)
    for lane in lanes:
        while lane.next():
            pass
    ended = [lane.state() for lane in lanes]
    for number, size in enumerate((60, 23)):
        total, bad = counted(ended, number), -(-size // 5)
        assert (total.rows, total.bad_rows) == (2 * size, 2 * bad)
        assert total.examples == 2 * (size - bad)


def test_lanes_of_one_epoch_share_the_rows() -> None:
    """1,000 rows of their own on 4 lanes: none twice, and no lane runs ahead of the others."""
    feeds = [make_feed([1] * 1000, 1, 0)]
    seen: list[tuple[int, int, int]] = []
    lanes = make_lanes(4, feeds)
    for _ in range(20):
        for lane in lanes:
            seen += rows_of(lane.next())
    assert len(seen) == len(set(seen)) > 80


def test_few_chunks_are_shared_row_by_row() -> None:
    """One chunk and 4 lanes: all lanes are in the first epoch, not each in one of its own."""
    feeds = [make_feed([400], 1, 0)]
    lanes = make_lanes(4, feeds)
    seen = Counter(row for lane in lanes for _ in range(10) for row in rows_of(lane.next()))
    assert set(seen.values()) == {1}


def test_shares_hold_in_every_lane() -> None:
    """Weights 1 : 2, counted in rows: never off by more than a row."""
    feeds = [make_feed([1] * 50, None, 0), make_feed([10] * 5, None, 3, "b")]
    for lane in make_lanes(3, feeds):
        for _ in range(30):
            lane.next()
            first, second = lane.mixer.given
            assert abs(first / (1 / 3) - second / (2 / 3)) <= 3


def test_a_source_without_examples_is_named() -> None:
    class Empty(Numbered):
        """Chunks whose rows have all gone."""

        def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
            """Nothing."""
            return iter(())

    feed = Feed("nothing", Empty([3, 3], False), Shuffled(2, [0]), None, None, 0)
    with pytest.raises(DataError, match="'nothing' holds no example"):
        make_lanes(1, [feed])[0].next()


def test_the_state_is_small() -> None:
    """128 rows wait, 1,024 are in the buffer: a few tens of KB, however many were read."""
    feeds = [make_feed([200] * 500, None, 1024)]
    (lane,) = make_lanes(1, feeds, packing_lookahead=128)
    for _ in range(200):
        lane.next()
    assert len(json.dumps(asdict(lane.state()))) < 40_000


def test_a_file_that_is_one_chunk_is_not_read_many_times_at_once() -> None:
    """Its next epoch begins when this one has been read."""
    (lane,) = make_lanes(1, [make_feed([400], None, 5)])
    seen: list[tuple[int, int, int]] = []
    while len(seen) < 300:
        seen += rows_of(lane.next())
    assert len(set(seen)) > 290


def test_small_chunks_shared_by_lanes_give_each_as_much() -> None:
    """Chunks of 5 rows on 2 lanes: 3 and 2 by turns."""
    lanes = make_lanes(2, [make_feed([5] * 8, 2, 0)], packing=False)
    counts = []
    for lane in lanes:
        count = 0
        while item := lane.next():
            count += len(rows_of(item))
        counts.append(count)
    assert counts == [40, 40]
