"""Shares: of tokens or rows, of replay, by stages and temperature, with sources that end."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError
from controlllm.common.storage.schema import check_record
from controlllm.data import (
    REPLAY,
    TRAIN,
    DataConfig,
    Example,
    SourceConfig,
    StageConfig,
    TokenStore,
    TrainLoader,
)
from controlllm.data.loader.mixing import Mixer, MixerState, plan_shares, redeal_mixers
from controlllm.data.loader.open_source import store_feed
from controlllm.data.loader.stream import Stream

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=12)


def make_mixer(config: DataConfig, lengths: Sequence[Sequence[int]], lanes: int = 1) -> Mixer:
    """Over stores whose examples have these lengths, source by source."""
    sources = [*config.train, *config.replay]
    streams = []
    for number, (source, of_source) in enumerate(zip(sources, lengths, strict=True)):
        examples = [Example.whole([1] * n) for n in of_source]
        store = TokenStore.from_examples(str(source.name), examples)
        feed = store_feed(str(source.name), store, config, [number], source.epochs)
        streams.append(Stream(feed, 0, lanes, number, number))
    return Mixer(streams, plan_shares(config, None), config.mix_by, lanes)


def sources(weights: Sequence[float], epochs: Sequence[float | None] = (), name: str = "s") -> Any:
    ends = [*epochs, *[None] * (len(weights) - len(epochs))]
    return [
        SourceConfig(f"{name}{i}", weight=weight, epochs=end)
        for i, (weight, end) in enumerate(zip(weights, ends, strict=True))
    ]


def draws(mixer: Mixer, most: int = 10_000) -> Iterator[int]:
    """The source of each draw."""
    for _ in range(most):
        if (draw := mixer.draw()) is None:
            return
        yield draw.source


@given(
    weights=st.lists(st.integers(1, 100), min_size=1, max_size=8),
    lengths=st.lists(LENGTHS, min_size=8, max_size=8),
    mix_by=st.sampled_from(["rows", "tokens"]),
)
@settings(deadline=None, max_examples=60)
def test_no_source_is_ever_a_whole_example_off(
    weights: list[int], lengths: list[list[int]], mix_by: str
) -> None:
    """At every moment, of what was given: in rows by one row, in tokens by the longest example."""
    config = DataConfig(sources(weights), mix_by=mix_by)
    mixer = make_mixer(config, lengths[: len(weights)])
    shares = [weight / sum(weights) for weight in weights]
    for _ in draws(mixer, 200):
        total = sum(mixer.given)
        longest = 1 if mix_by == "rows" else max(map(max, lengths[: len(weights)]))
        for amount, share in zip(mixer.given, shares, strict=True):
            assert abs(amount - share * total) <= longest + 1e-9


@given(
    epochs=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    lengths=st.lists(LENGTHS, min_size=4, max_size=4),
    replay=st.floats(0.05, 0.6),
    mix_by=st.sampled_from(["rows", "tokens"]),
)
@settings(deadline=None, max_examples=60)
def test_replay_keeps_its_share_while_train_sources_leave(
    epochs: list[int], lengths: list[list[int]], replay: float, mix_by: str
) -> None:
    config = DataConfig(
        sources([3, 2, 1], epochs),
        sources([1], name="old"),
        replay_share=replay,
        mix_by=mix_by,
    )
    mixer = make_mixer(config, lengths)
    longest = 1 if mix_by == "rows" else max(map(max, lengths))
    drawn = [0] * 4
    for source in draws(mixer):
        drawn[source] += 1
        totals = [a + b for a, b in zip(mixer.given, mixer.before, strict=True)]
        off = abs(totals[3] - replay * sum(totals))
        # One example at each time that the shares change, that is when a source leaves.
        assert off <= (1 + sum(mixer.ended)) * longest + 1e-9
    # It ended when all train sources had; each was drawn for exactly its epochs.
    assert drawn[:3] == [n * len(of) for n, of in zip(epochs, lengths[:3], strict=True)]
    assert mixer.drawn == drawn


def test_what_is_left_takes_over_the_share_of_a_source_that_leaves() -> None:
    """1 : 1 : 2 in rows; the first leaves after 8 rows, then it is 1 : 2."""
    mixer = make_mixer(DataConfig(sources([1, 1, 2], [2]), mix_by="rows"), [[5] * 4, [7], [9]])
    order = list(draws(mixer, 32))
    assert [order.count(s) for s in range(3)] == [8, 8, 16]
    after = list(draws(mixer, 30))
    assert [after.count(s) for s in range(3)] == [0, 10, 20]


def test_a_replay_source_that_leaves_hands_on_to_replay_then_to_train() -> None:
    replay = sources([1, 1], [1, 2], "old")
    config = DataConfig(sources([1]), replay, replay_share=0.5, mix_by="rows")
    mixer = make_mixer(config, [[3], [2] * 4, [2] * 4])
    order = list(draws(mixer, 40))
    # 4 of each and 8 of train; then 4 of the second and 4 of train; then train alone.
    assert [order[:16].count(s) for s in range(3)] == [8, 4, 4]
    assert [order[16:24].count(s) for s in range(3)] == [4, 0, 4]
    assert set(order[24:]) == {0}


@given(
    weights=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    epochs=st.lists(st.none() | st.integers(1, 2), min_size=4, max_size=4),
    lengths=st.lists(LENGTHS, min_size=4, max_size=4),
    stop=st.integers(0, 60),
    mix_by=st.sampled_from(["rows", "tokens"]),
)
@settings(deadline=None, max_examples=60)
def test_a_restored_mixer_goes_on_exactly(
    weights: list[int],
    epochs: list[float | None],
    lengths: list[list[int]],
    stop: int,
    mix_by: str,
) -> None:
    config = DataConfig(
        sources(weights, epochs[: len(weights)]),
        mix_by=mix_by,
        stages=[StageConfig(tokens=25, weights={"s0": 1, "s1": 2})],
    )
    mixer = make_mixer(config, lengths[: len(weights)])
    for _ in draws(mixer, stop):
        pass
    again = make_mixer(config, lengths[: len(weights)])
    plain = json.loads(json.dumps(asdict(mixer.state())))
    again.load(check_record(plain, MixerState, "a mixer"))
    assert list(draws(mixer, 60)) == list(draws(again, 60))
    assert mixer.state() == again.state()


def test_stages_in_order() -> None:
    """100 rows of the first, 60 of 1 : 2, then the weights of the sources for ever."""
    config = DataConfig(
        sources([3, 1]),
        mix_by="rows",
        stages=[
            StageConfig(tokens=100, weights={"s0": 1}),
            StageConfig(tokens=60, weights={"s0": 1, "s1": 2}),
        ],
    )
    order = list(draws(make_mixer(config, [[4], [6]]), 200))
    assert set(order[:100]) == {0}
    assert [order[100:160].count(s) for s in (0, 1)] == [20, 40]
    assert [order[160:].count(s) for s in (0, 1)] == [30, 10]


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_stages_count_tokens_of_all_lanes(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase, lanes: int
) -> None:
    """A stage of 3,000 tokens is as long on any number of lanes, up to an example in each."""
    for name in ("a", "b"):
        rows = [{"text": name * (1 + i % 20)} for i in range(64)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(
        train=[SourceConfig(str(tmp_path / f"{name}.jsonl")) for name in ("a", "b")],
        max_length=24,
        packing=False,
        lanes=lanes,
        stages=[StageConfig(tokens=3000, weights={"a": 1})],
    )
    loader = TrainLoader(config, pico_tokenizer, 1, seed=0)
    first = 0
    for batch in loader:
        row = batch["input_ids"][batch["attention_mask"].bool()]
        if row[1] == ord("b") + 3:
            break
        first += len(row)
    # Each lane has drawn about as much when the first of them draws a `b`; then `a` goes on.
    assert 3000 - lanes * 24 <= first <= 3000 + 3 * lanes * 24


def test_a_stage_names_sources_of_one_kind() -> None:
    """Where a stage names no replay source, those keep their own weights; and the other way."""
    config = DataConfig(
        sources([1, 3]),
        sources([1, 1], name="old"),
        replay_share=0.2,
        stages=[
            StageConfig(tokens=5, weights={"s1": 1}),
            StageConfig(tokens=5, weights={"old0": 1}),
        ],
    )
    first, second, last = (stage.shares for stage in plan_shares(config, None).stages)
    assert first == pytest.approx((0, 0.8, 0.1, 0.1))
    assert second == pytest.approx((0.2, 0.6, 0.2, 0))
    assert last == pytest.approx((0.2, 0.6, 0.1, 0.1))


def test_a_stage_whose_sources_have_left_is_over() -> None:
    config = DataConfig(
        sources([1, 1], [1, 1]),
        mix_by="rows",
        stages=[StageConfig(tokens=1000, weights={"s0": 1})],
    )
    assert list(draws(make_mixer(config, [[2] * 5, [2] * 5]))) == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("temperature", "wanted"),
    [
        (None, (1 / 4, 3 / 4)),  # weights alone
        (1.0, (100 / 1300, 1200 / 1300)),  # 1 * 100 : 3 * 400
        (2.0, (10 / 70, 60 / 70)),  # 1 * 10 : 3 * 20
        (float("inf"), (1 / 4, 3 / 4)),
    ],
)
def test_temperatures(temperature: float | None, wanted: tuple[float, float]) -> None:
    config = DataConfig(sources([1, 3]), temperature=temperature)
    plan = plan_shares(config, [100, 400])
    assert plan.stages[-1].shares == pytest.approx(wanted)


def test_up_sampling_counts_as_size() -> None:
    """`sample: 4` of 100 tokens is as 400 tokens; without a temperature as 4 times the weight."""
    config = DataConfig([SourceConfig("a", sample=4.0), SourceConfig("b", sample=0.5)])
    assert plan_shares(config, None).stages[0].shares == pytest.approx((0.8, 0.2))
    config.temperature = 2.0
    assert plan_shares(config, [100, 100]).stages[0].shares == pytest.approx((2 / 3, 1 / 3))


def test_shares_of_the_whole() -> None:
    config = DataConfig(sources([1, 1]), sources([1], name="old"), replay_share=0.1)
    plan = plan_shares(config, None, rehearsal_share=0.3)
    assert plan.stages[0].shares == pytest.approx((0.3, 0.3, 0.1, 0.3))
    assert plan.origins[:3] == (TRAIN, TRAIN, REPLAY)
    with pytest.raises(ConfigError, match="leave nothing for train"):
        plan_shares(config, None, rehearsal_share=0.9)
    with pytest.raises(ConfigError, match="names no source"):
        plan_shares(DataConfig(), None)


@pytest.mark.parametrize("lanes", [1, 2, 3, 5])
def test_counts_dealt_anew_keep_stage_and_sums(lanes: int) -> None:
    """A lane that lags a stage behind does not fill the next stage with what it gave before."""
    streams = make_mixer(DataConfig(sources([1, 1])), [[2], [2]]).state().streams
    states = [
        MixerState(1, 9, (0, 5), (50, 1), (500, 0), (True, False), streams),
        MixerState(0, 11, (499, 0), (49, 0), (0, 0), (False, False), streams),
    ]
    dealt = redeal_mixers(states, lanes)
    sums = {name: [sum(column) for column in zip(*(getattr(d, name) for d in dealt), strict=True)]
            for name in ("given", "drawn", "before")}  # fmt: skip
    assert sums == {"given": [0, 5], "drawn": [99, 1], "before": [999, 0]}
    assert {(d.stage, d.longest, *d.ended) for d in dealt} == {(1, 11, False, False)}
