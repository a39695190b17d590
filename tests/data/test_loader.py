"""The loader is endless, seeded, keeps its shares, and resumes exactly from a small state."""

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.attention.attention import packed_attention_for, register_packed_attention
from controlllm.common.errors import CheckpointError, ConfigError, DataError
from controlllm.common.losses import cross_entropy_sum
from controlllm.data import (
    REHEARSAL,
    REPLAY,
    TRAIN,
    Batch,
    DataConfig,
    Example,
    SourceConfig,
    TokenStore,
    TrainLoader,
    eval_batches,
    model_inputs,
)
from controlllm.data.loader.mixing import Mixer, plan_shares
from controlllm.data.loader.open_source import store_feed
from controlllm.data.loader.stream import Stream

LIMIT = 32
SIZES = {"a": 23, "b": 7, "c": 11}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources of rows of many lengths, each row telling its source and number."""
    path = tmp_path_factory.mktemp("sources")
    for name, size in SIZES.items():
        rows = [{"text": f"{name}{i:02d}" + "." * (i * 5 % 24)} for i in range(size)]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_config(folder: Path, **overrides: Any) -> DataConfig:
    given: dict[str, Any] = {
        "train": [SourceConfig(f"{folder}/a.jsonl", weight=3), SourceConfig(f"{folder}/b.jsonl")],
        "replay": [SourceConfig(f"{folder}/c.jsonl")],
        "replay_share": 0.2,
        "max_length": LIMIT,
    }
    if overrides.get("packing", True):
        given["packing_lookahead"] = 8
    return DataConfig(**{**given, **overrides})


REHEARSED = TokenStore.from_examples(
    "rehearsal", [Example.whole([1, 9, 9, 9 + i]) for i in range(5)]
)


def make_loader(
    folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int = 0, **overrides: Any
) -> TrainLoader:
    return TrainLoader(make_config(folder, **overrides), tokenizer, 2, seed, (REHEARSED, 0.125))


def equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a
    )


def rows_seen(batches: list[Batch], tokenizer: PreTrainedTokenizerBase) -> Counter[str]:
    """How often each row of the files was seen, by its first three characters."""
    seen: Counter[str] = Counter()
    for batch in batches:
        for text in tokenizer.batch_decode(batch["input_ids"]):
            seen.update(part[:3] for part in text.split("<s>") if part[:1] in ("a", "b", "c"))
    return seen


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("mix_by", ["tokens", "rows"])
def test_resume_at_any_step_is_the_straight_run(
    folder: Path, pico_tokenizer: PreTrainedTokenizerBase, packing: bool, mix_by: str
) -> None:
    choices = {"packing": packing, "mix_by": mix_by}
    straight = make_loader(folder, pico_tokenizer, **choices)
    states, batches = [], []
    for _ in range(40):
        states.append(json.dumps(straight.state_dict()))
        batches.append(next(straight))
    for step in (0, 1, 7, 23, 39):
        resumed = make_loader(folder, pico_tokenizer, **choices)
        resumed.load_state_dict(json.loads(states[step]))
        assert resumed.batches == step
        assert all(equal(a, b) for a, b in zip(batches[step:], resumed, strict=False)), step
    assert max(map(len, states)) < 20_000


def test_a_loader_can_be_wound_back(folder: Path, pico_tokenizer: PreTrainedTokenizerBase) -> None:
    loader = make_loader(folder, pico_tokenizer)
    start = loader.state_dict()
    first = list(islice(loader, 30))
    loader.load_state_dict(start)
    assert all(equal(a, b) for a, b in zip(first, loader, strict=False))


@pytest.mark.parametrize("shuffle", [True, False])
def test_pieces_of_a_long_text_are_shuffled_and_resumed(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase, shuffle: bool
) -> None:
    (tmp_path / "book.txt").write_text("".join(f"{number:03d}." for number in range(400)))

    def loader() -> TrainLoader:
        source = SourceConfig(f"{tmp_path}/book.txt", epochs=1)
        settings = {"train": [source], "shuffle": shuffle, "piece_bos": False, "packing": False}
        return TrainLoader(DataConfig(max_length=17, **settings), pico_tokenizer, 2, 0)

    straight, batches, states = loader(), [], []
    for batch in straight:
        batches.append(batch)
        states.append(json.dumps(straight.state_dict()))
    rows = [text for batch in batches for text in pico_tokenizer.batch_decode(batch["input_ids"])]
    places = [int(number[1]) for row in rows if (number := re.search(r"(\d{3})\.", row))]
    assert len(set(places)) == len(places) == len(rows) - 1 == 100  # The last piece is EOS.
    assert (places == sorted(places)) is not shuffle
    resumed = loader()
    resumed.load_state_dict(json.loads(states[20]))
    assert all(equal(a, b) for a, b in zip(batches[21:], resumed, strict=True))


def test_seeds_decide(folder: Path, pico_tokenizer: PreTrainedTokenizerBase) -> None:
    same, other = (make_loader(folder, pico_tokenizer, seed) for seed in (0, 1))
    again = make_loader(folder, pico_tokenizer, 0)
    first = next(same)
    assert equal(first, next(again))
    assert not equal(first, next(other))


def test_states_of_other_data_are_refused(
    folder: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    state = make_loader(folder, pico_tokenizer).state_dict()
    for other in (
        make_loader(folder, pico_tokenizer, seed=1),
        make_loader(folder, pico_tokenizer, replay_share=0.3),
        make_loader(folder, pico_tokenizer, max_length=20),
        make_loader(folder, pico_tokenizer, train=[SourceConfig(f"{folder}/b.jsonl")]),
    ):
        with pytest.raises(CheckpointError, match="belongs to other data"):
            other.load_state_dict(state)


def test_damaged_states_are_refused_in_one_sentence(
    folder: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    loader = make_loader(folder, pico_tokenizer)
    next(loader)
    state = loader.state_dict()
    damages: dict[str, Callable[[Any], object]] = {
        r"batches=-1 must be from 0": lambda s: s.update(batches=-1),
        r"lanes=\[1\] must be numbered 0, 1, 2": lambda s: s.update(lanes={"1": s["lanes"]["0"]}),
        r"lanes\.0 is incomplete: .*'items'": lambda s: s["lanes"]["0"].pop("items"),
        r"lanes\.0\.mixer\.stage='x' must be a whole": lambda s: s["lanes"]["0"]["mixer"].update(
            stage="x"
        ),
        r"must be equally long": lambda s: s["lanes"]["0"]["mixer"]["given"].append(0),
        r"lane 0 has other sources or stages": lambda s: s["lanes"]["0"]["mixer"].update(stage=9),
        r"waiting\[0\]=\[1, 2\] must be 5 numbers from 0 on": lambda s: s["lanes"]["0"][
            "batcher"
        ].update(waiting=[[1, 2]]),
        r"open=99 must be at most": lambda s: s["lanes"]["0"]["mixer"]["streams"][0].update(
            open=99
        ),
    }
    for message, damage in damages.items():
        other = copy.deepcopy(state)
        damage(other)
        with pytest.raises(CheckpointError, match=f"the data state.*{message}"):
            make_loader(folder, pico_tokenizer).load_state_dict(other)
    make_loader(folder, pico_tokenizer).load_state_dict(state)


@pytest.mark.parametrize("packing", [True, False])
def test_shares_hold_and_origins_tell(
    folder: Path, pico_tokenizer: PreTrainedTokenizerBase, packing: bool
) -> None:
    loader = make_loader(folder, pico_tokenizer, packing=packing)
    origins = torch.cat([batch["origin"].flatten() for batch in islice(loader, 200)])
    real = origins[origins >= 0]
    for origin, share in ((TRAIN, 0.675), (REPLAY, 0.2), (REHEARSAL, 0.125)):
        assert (real == origin).float().mean().item() == pytest.approx(share, abs=0.03)
    progress = loader.progress()
    assert list(progress) == ["0:a", "1:b", "2:c", "3:rehearsal"]
    assert progress["0:a"]["tokens"] == pytest.approx(3 * progress["1:b"]["tokens"], rel=0.05)


@pytest.mark.parametrize("packing", [True, False])
def test_each_epoch_has_every_row_once_in_a_new_order(
    folder: Path, pico_tokenizer: PreTrainedTokenizerBase, packing: bool
) -> None:
    config = make_config(
        folder,
        train=[SourceConfig(f"{folder}/a.jsonl")],
        replay=[],
        replay_share=0.0,
        packing=packing,
    )
    loader = TrainLoader(config, pico_tokenizer, 1, seed=0)
    batches = []
    while loader.progress()["0:a"]["epochs"] < 5:
        batches.append(next(loader))
    counts = rows_seen(batches, pico_tokenizer)
    assert len(counts) == SIZES["a"]
    assert set(counts.values()) <= {4, 5, 6}
    stream = Stream(loader.feeds[0], lane=0, lanes=1, seed=0)
    drawn = [stream.draw() for _ in range(3 * SIZES["a"])]
    rows = [draw.reference[0] % SIZES["a"] for draw in drawn if draw is not None]
    orders = [
        [loader.feeds[0].order.at(epoch, row) for row in rows[: SIZES["a"]]] for epoch in range(3)
    ]
    assert [sorted(order) for order in orders] == [list(range(SIZES["a"]))] * 3
    assert orders[0] != orders[1] != orders[2]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_no_stream_is_ever_far_from_its_share(weights: list[int], draws: int) -> None:
    config = DataConfig([SourceConfig(f"s{i}", weight=w) for i, w in enumerate(weights)])
    store = TokenStore.from_examples("s", [Example.whole([1, 2])] * 3)
    streams = [Stream(store_feed("s", store, config, [i]), 0, 1, i) for i in range(len(weights))]
    mixer = Mixer(streams, plan_shares(config, None), by="rows", lanes=1)
    for _ in range(draws):
        mixer.draw()
    for drawn, weight in zip(mixer.drawn, weights, strict=True):
        assert abs(drawn - weight / sum(weights) * draws) <= len(weights)


def test_packed_batches_have_one_shape(
    folder: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    loader = make_loader(folder, pico_tokenizer)
    assert {batch["input_ids"].shape for batch in islice(loader, 20)} == {(1, 2 * LIMIT)}


def test_what_cannot_train_is_refused(
    folder: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ConfigError, match="names no source"):
        TrainLoader(DataConfig(), pico_tokenizer, 2, 0)
    with pytest.raises(ConfigError, match="batch_size=0"):
        TrainLoader(make_config(folder), pico_tokenizer, 0, 0)
    with pytest.raises(ConfigError, match="leave nothing for train"):
        TrainLoader(make_config(folder), pico_tokenizer, 2, 0, (REHEARSED, 0.8))
    long = TokenStore.from_examples("rehearsal", [Example.whole([1] * (LIMIT + 1))])
    with pytest.raises(DataError, match=r"longer than data\.max_length"):
        TrainLoader(make_config(folder), pico_tokenizer, 2, 0, (long, 0.1))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_eval_batches_hold_every_target_once(
    folder: Path, pico_tokenizer: PreTrainedTokenizerBase, packing: bool, batch_size: int
) -> None:
    config = make_config(folder, packing=packing)
    source = SourceConfig(f"{folder}/a.jsonl")
    batches = eval_batches(source, pico_tokenizer, config, batch_size)
    again = eval_batches(source, pico_tokenizer, config, batch_size)
    assert all(equal(a, b) for a, b in zip(batches, again, strict=True))
    assert set(rows_seen(batches, pico_tokenizer).values()) == {1}
    assert sum(rows_seen(batches, pico_tokenizer).values()) == SIZES["a"]
    few = eval_batches(source, pico_tokenizer, config, batch_size, limit=4)
    assert sorted(rows_seen(few, pico_tokenizer)) == ["a00", "a01", "a02", "a03"]


def test_packed_and_padded_losses_agree(
    folder: Path, pico_tokenizer: PreTrainedTokenizerBase, pico_llama: Any
) -> None:
    """Per document sdpa, transformers' own mask from positions, and padding: one number."""
    register_packed_attention()
    model: PreTrainedModel = pico_llama()
    source = SourceConfig(f"{folder}/*.jsonl")
    sums = {}
    for packing, implementation in ((True, packed_attention_for("sdpa")), (True, "sdpa"),
                                    (True, "eager"), (False, "sdpa")):  # fmt: skip
        model.set_attn_implementation(implementation)
        batches = eval_batches(source, pico_tokenizer, make_config(folder, packing=packing), 3)
        with torch.no_grad():
            parts = [
                cross_entropy_sum(model(**model_inputs(batch)).logits, batch["labels"])
                for batch in batches
            ]
        sums[packing, implementation] = (
            sum(part[0].item() for part in parts),
            sum(part[1].item() for part in parts),
        )
    reference, count = sums[False, "sdpa"]
    for total, number in sums.values():
        assert number == count
        assert total == pytest.approx(reference, rel=1e-5)
