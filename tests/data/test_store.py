"""Tokens in flat arrays, in memory and on disk."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlllm.common.errors import DataError
from controlllm.data import Example, SourceStats, TokenStore
from controlllm.data.cache.store import StoreWriter


def stored(*rows: list[int]) -> TokenStore:
    return TokenStore.from_examples("rehearsal", [Example.whole(row) for row in rows])


def test_stores_of_whole_sequences() -> None:
    store = stored([1, 5, 6], [1, 7])
    assert store[0].labels.tolist() == [-100, 5, 6]
    assert store[1].input_ids.tolist() == [1, 7]
    assert (store.tokens, store.lengths.tolist()) == (5, [3, 2])
    with pytest.raises(IndexError, match="there is no 2"):
        store[2]
    other = stored([1, 5], [6, 1, 7])
    assert store.fingerprint != other.fingerprint


@given(
    rows=st.lists(
        st.lists(st.tuples(st.integers(0, 70_000), st.booleans()), min_size=1), min_size=1
    ),
    large=st.booleans(),
    data=st.data(),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[tuple[int, bool]]],
    large: bool,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("store")
    top = 70_001 if large else 2**16
    examples = []
    for row in rows:
        ids = np.array([min(token, top - 1) for token, _ in row], dtype=np.int32)
        examples.append(Example(ids, np.where([on for _, on in row], ids, -100).astype(np.int32)))
    chosen = data.draw(st.permutations(range(len(rows)))) if data.draw(st.booleans()) else None
    with StoreWriter(folder, top) as writer:
        for example in examples:
            writer.write(example)
    index = None if chosen is None else np.array(chosen, dtype=np.int64)
    writer.finish(SourceStats(rows=len(rows)), index, None)
    store = TokenStore.open("s", folder)
    wanted = examples if chosen is None else [examples[i] for i in chosen]
    assert len(store) == len(wanted) == store.num_rows
    assert store.lengths.tolist() == [len(example) for example in wanted]
    for i, example in enumerate(wanted):
        assert store[i].input_ids.tolist() == example.input_ids.tolist()
        assert store[i].labels.tolist() == example.labels.tolist()
    assert store.stats.rows == len(rows)


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    ids = np.arange(5, dtype=np.int32)
    with StoreWriter(tmp_path, 10) as writer:
        writer.write(Example(ids, ids))
    writer.finish(SourceStats())
    (tmp_path / "ids.bin").write_bytes(b"12")
    with pytest.raises(DataError, match=r"ids\.bin has 2 bytes, not 10.*remove that folder"):
        TokenStore.open("s", tmp_path)


def test_a_store_without_examples_is_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, 10) as writer:
        pass
    writer.finish(SourceStats())
    with pytest.raises(DataError, match="'s' holds no examples"):
        TokenStore.open("s", tmp_path)


def test_a_store_on_disk_is_opened_again_by_workers(tmp_path: Path) -> None:
    ids = np.arange(50_000, dtype=np.int32)
    with StoreWriter(tmp_path, 50_000) as writer:
        writer.write(Example(ids, ids))
    writer.finish(SourceStats(rows=1))
    sent = pickle.dumps(TokenStore.open("s", tmp_path))
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert again[0].input_ids.tolist() == ids.tolist() and again.stats.rows == 1
    held = pickle.loads(pickle.dumps(stored([1, 2])))
    assert held[0].labels.tolist() == [-100, 2]
