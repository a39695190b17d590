"""Slots that are filled beforehand: every document in exactly one, kept apart, read exactly."""

import json
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from controlllm.data import DataConfig, Example, SourceConfig, SourceStats, TokenStore, TrainLoader
from controlllm.data.cache.store import StoreWriter
from controlllm.data.loader.packing import slot_store

CAPACITY = 32
LENGTHS = st.lists(st.integers(2, CAPACITY), min_size=1, max_size=60)


def config_of(**settings: Any) -> DataConfig:
    return DataConfig(
        **{"max_length": CAPACITY, "packing_strategy": "fixed", "packing_lookahead": 8} | settings
    )


def documents_of(lengths: list[int]) -> list[Example]:
    """The tokens of each tell its number; every second token is a target."""
    made = []
    for number, length in enumerate(lengths):
        ids = np.full(length, number, dtype=np.int32)
        made.append(Example(ids, np.where(np.arange(length) % 2, ids, -100).astype(np.int32)))
    return made


def write_store(folder: Path, lengths: list[int], phases: list[int] | None) -> TokenStore:
    folder.mkdir()
    with StoreWriter(folder, 1000) as writer:
        writer.write_all(documents_of(lengths))
    writer.finish(SourceStats(rows=len(lengths)), phases=phases)
    return TokenStore.open("s", folder)


def taken_apart(slot: Example) -> list[Example]:
    assert slot.starts is not None
    bounds = [0, *slot.starts.tolist(), len(slot)]
    return [Example(slot.input_ids[a:b], slot.labels[a:b]) for a, b in pairwise(bounds)]


@given(lengths=LENGTHS, shuffle=st.booleans(), data=st.data())
def test_every_document_is_in_one_slot_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shuffle: bool, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(lengths)))
    phases = data.draw(st.sampled_from([None, [first, len(lengths) - first]]))
    folder = tmp_path_factory.mktemp("slots") / "store"
    documents = write_store(folder, lengths, phases)
    config = config_of(shuffle=shuffle)
    store = slot_store(documents, config)
    assert store.tokens == sum(lengths)
    slots = store.examples(range(len(store)))
    assert max(map(len, slots)) <= CAPACITY
    found = [document for slot in slots for document in taken_apart(slot)]
    assert sorted(int(document.input_ids[0]) for document in found) == list(range(len(lengths)))
    for document in found:
        expected = documents[int(document.input_ids[0])]
        assert document.input_ids.tolist() == expected.input_ids.tolist()
        assert document.labels.tolist() == expected.labels.tolist()
    if phases:
        assert store.phases is not None
        easy = [taken_apart(slot) for slot in slots[: store.phases[0]]]
        assert sum(map(len, easy)) == first
        assert all(int(document.input_ids[0]) < first for slot in easy for document in slot)


def test_in_memory_they_are_the_same(tmp_path: Path) -> None:
    lengths = [3 + number * 7 % 28 for number in range(50)]
    on_disk = write_store(tmp_path / "store", lengths, None)
    in_memory = TokenStore(
        "s",
        np.concatenate([document.input_ids for document in documents_of(lengths)]),
        np.concatenate([document.labels for document in documents_of(lengths)]) != -100,
        np.cumsum(lengths),
    )
    one, other = (slot_store(store, config_of()) for store in (on_disk, in_memory))
    assert (one.folder is None, other.folder is None) == (False, True)
    for a, b in zip(one.examples(range(len(one))), other.examples(range(len(other))), strict=True):
        assert a.starts is not None
        assert b.starts is not None
        assert a.input_ids.tolist() == b.input_ids.tolist()
        assert a.labels.tolist() == b.labels.tolist()
        assert a.starts.tolist() == b.starts.tolist()


def test_they_are_made_once_for_each_setting(tmp_path: Path) -> None:
    documents = write_store(tmp_path / "store", [9] * 40, None)
    folders = set()
    for settings in ({}, {"packing_lookahead": 3}, {"shuffle": False}):
        folder = slot_store(documents, config_of(**settings)).folder
        assert folder is not None
        before = folder.stat().st_mtime_ns
        again = slot_store(documents, config_of(**settings)).folder
        assert again == folder
        assert again.stat().st_mtime_ns == before
        folders.add(folder)
    assert len(folders) == 3


ROWS = 37


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"text": f"a{i:02d}" + "." * (i * 5 % 24)} for i in range(ROWS)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loader_of(
    source: Path, tokenizer: PreTrainedTokenizerBase, epochs: float | None = None, **settings: Any
) -> TrainLoader:
    train = [SourceConfig(str(source), epochs=epochs)]
    config = config_of(train=train, cache_dir=str(source.parent / "cache"), **settings)
    examples = [Example.whole([1, 9, 9, 9 + i]) for i in range(5)]
    rehearsed = TokenStore.from_examples("rehearsal", examples)
    return TrainLoader(config, tokenizer, 2, 0, None if epochs else (rehearsed, 0.25))


def test_an_epoch_has_every_row_once(source: Path, pico_tokenizer: PreTrainedTokenizerBase) -> None:
    seen: Counter[str] = Counter()
    for batch in loader_of(source, pico_tokenizer, epochs=2):
        bounds = batch["cu_seq_lens_q"].tolist()
        assert (batch["labels"][0, bounds[:-1]] == -100).all()
        for start, end in pairwise(bounds):
            if batch["origin"][0, start] >= 0:
                assert batch["position_ids"][0, start:end].tolist() == list(range(end - start))
                seen[pico_tokenizer.decode(batch["input_ids"][0, start:end])[3:6]] += 1
    assert seen == {f"a{i:02d}": 2 for i in range(ROWS)}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resume_is_the_straight_run(
    source: Path, pico_tokenizer: PreTrainedTokenizerBase, num_workers: int
) -> None:
    straight = loader_of(source, pico_tokenizer, lanes=2)
    batches = list(islice(straight, 12))
    loader = loader_of(source, pico_tokenizer, lanes=2, num_workers=num_workers)
    for _ in range(5):
        next(loader)
    state = json.loads(json.dumps(loader.state_dict()))
    loader.close()
    resumed = loader_of(source, pico_tokenizer, lanes=2, num_workers=num_workers)
    resumed.load_state_dict(state)
    for expected, batch in zip(batches[5:], resumed, strict=False):
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["cu_seq_lens_q"], expected["cu_seq_lens_q"])
        assert torch.equal(batch["origin"], expected["origin"])
    resumed.close()
