"""The cache of prepared tokens: whole or not there, made once, whatever happens meanwhile."""

import copy
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.processes import run_processes, start, values
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.data import DataConfig, SourceConfig, TokenStore, TrainLoader, eval_batches
from controlllm.data.cache.prepare import prepare_source, prepared_store, store_folder
from controlllm.data.examples.encode import RowEncoder
from controlllm.data.examples.row_filters import register_filter
from controlllm.data.sources import open_chunks

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
ROWS = 600


@register_filter("test_prepare.slow")
def slow(row: Any) -> bool:
    """Notes who reads; at row 500, long after the first tokens were written, it waits for a sign.

    The signs are files beside the rows.
    """
    folder = Path(row["folder"])
    if row["id"] == 0:
        with (folder / "workers").open("a") as log:
            log.write(f"{os.getpid()}\n")
    if row["id"] == 500:
        (folder / "began").touch()
        wait_for(folder / "go", folder / "fail")
        if (folder / "fail").exists():
            raise DataError("the sign says no")
    return True


def wait_for(*paths: Path) -> None:
    end = time.monotonic() + 30
    while not any(path.exists() for path in paths):
        assert time.monotonic() < end, f"{paths} did not come"
        time.sleep(0.005)


class Place:
    """A source of 600 rows under a folder, and its cache."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        rows = [{"text": f"row {i} " * 4, "id": i, "folder": str(folder)} for i in range(ROWS)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(self, **options: Any) -> DataConfig:
        source = SourceConfig(str(self.folder / "rows.jsonl"), filter="test_prepare.slow")
        return DataConfig(
            [source], **{"cache_dir": str(self.folder / "cache"), "max_length": 64, **options}
        )

    def encoder(self, **options: Any) -> RowEncoder:
        config = self.config(**options)
        return RowEncoder(config.train[0], self.tokenizer, config, training=True)

    def store(self, **options: Any) -> TokenStore:
        encoder = self.encoder(**options)
        return prepare_source(encoder, open_chunks(encoder.source))

    def content(self, **options: Any) -> tuple[str, list[list[int]], list[list[int]]]:
        """Fingerprint, ids and labels."""
        store = self.store(**options)
        examples = [store[i] for i in range(len(store))]
        return (
            store.fingerprint,
            [example.input_ids.tolist() for example in examples],
            [example.labels.tolist() for example in examples],
        )

    def known(self) -> bool:
        encoder = self.encoder()
        return prepared_store(encoder, open_chunks(encoder.source)) is not None

    @property
    def store_folder(self) -> Path:
        encoder = self.encoder()
        return store_folder(encoder, open_chunks(encoder.source))

    def sign(self, name: str) -> None:
        (self.folder / name).touch()

    def workers(self) -> list[int]:
        return [int(pid) for pid in (self.folder / "workers").read_text().split()]

    def in_cache(self) -> list[str]:
        """What lies in the cache, but for locks."""
        return sorted(p.name for p in (self.folder / "cache" / "data").iterdir()
                      if not p.name.endswith(".lock"))  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase) -> Place:
    return Place(tmp_path, pico_tokenizer)


def test_what_is_prepared_is_used_and_equal(
    place: Place, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Training and evaluation find it by themselves; the rows are those that raw files give."""
    place.sign("go")
    raw = TrainLoader(place.config(shuffle=False), pico_tokenizer, 2, seed=0)
    first = [next(raw) for _ in range(5)]
    direct = eval_batches(place.config().train[0], pico_tokenizer, place.config(), 2)
    assert not place.known()
    store = place.store()
    assert place.known() and store.stats.rows == len(store) == ROWS
    readers = len(place.workers())
    prepared = TrainLoader(place.config(shuffle=False), pico_tokenizer, 2, seed=0)
    assert "prepared" in prepared.describe()
    for batch in first:
        assert next(prepared)["input_ids"].tolist() == batch["input_ids"].tolist()
    again = eval_batches(place.config().train[0], pico_tokenizer, place.config(), 2)
    for a, b in zip(direct, again, strict=True):
        assert a["labels"].tolist() == b["labels"].tolist()
    assert len(place.workers()) == readers  # nobody read the rows again


@needs_fork
def test_a_killed_pass_leaves_nothing_that_is_served(place: Place, tmp_path: Path) -> None:
    killed = start(place.store)
    wait_for(tmp_path / "began")
    os.kill(killed.pid, signal.SIGKILL)
    killed.join(20)
    assert [name for name in place.in_cache() if ".writing-" in name], "it was not at work"
    assert not place.known() and not place.store_folder.exists()
    place.sign("go")
    (after,) = values(run_processes([place.content], tmp_path / "outcomes"))
    assert after == place.content(cache_dir=str(tmp_path / "elsewhere"))
    assert place.known()
    assert place.in_cache() == [place.store_folder.name]


@needs_fork
def test_two_processes_prepare_one_cache_once(place: Place, tmp_path: Path) -> None:
    def begin_and_signal() -> Any:
        wait_for(tmp_path / "began")
        time.sleep(0.3)  # Long enough for the other to wait for the lock.
        place.sign("go")

    calls = [place.content, place.content, place.content, begin_and_signal]
    one, two, three, _ = values(run_processes(calls, tmp_path / "outcomes"))
    assert one == two == three and len(one[1]) == ROWS
    assert len(place.workers()) == 1
    assert place.in_cache() == [place.store_folder.name]


@needs_fork
def test_a_wait_that_is_too_long_names_folder_and_holder(place: Place, tmp_path: Path) -> None:
    holder = start(place.store)
    wait_for(tmp_path / "began")
    with pytest.raises(DataError) as caught:
        place.store(cache_timeout=0.2)
    assert f"process {holder.pid} on " in str(caught.value)
    assert str(place.store_folder) in str(caught.value)
    place.sign("go")
    holder.join(30)
    assert place.known() and place.workers() == [holder.pid]


@needs_fork
def test_waiters_fail_as_the_one_that_works(place: Place, tmp_path: Path) -> None:
    def signal_no() -> None:
        wait_for(tmp_path / "began")
        time.sleep(0.3)
        place.sign("fail")

    outcomes = run_processes([place.store, place.store, signal_no], tmp_path / "outcomes", 30)
    one, two = (outcome.error for outcome in outcomes[:2])
    assert one == two
    assert "DataError: source 'rows': " in one and "rows.jsonl:501: the sign says no" in one
    assert len(place.workers()) == 1
    (tmp_path / "fail").unlink()
    place.sign("go")
    assert len(place.store()) == ROWS  # What was mended is tried again.


def test_a_full_disk(place: Place, small_disk: Path, tmp_path: Path) -> None:
    """An error that says so; what was prepared before stays, and nothing half-made is left."""
    place.sign("go")
    cache = {"cache_dir": str(small_disk / "cache")}
    content = place.content(**cache)
    rows = [{"text": "x" * 900, "id": -1, "folder": str(tmp_path)} for _ in range(1200)]
    (tmp_path / "big.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    big = SourceConfig(str(tmp_path / "big.jsonl"))
    config = DataConfig([big], **cache)
    encoder = RowEncoder(big, place.tokenizer, config)
    with pytest.raises(DataError, match=r"source 'big': cannot write .*big-.*No space left"):
        prepare_source(encoder, open_chunks(big))
    left = [p.name for p in (small_disk / "cache" / "data").iterdir()]
    assert not [name for name in left if ".writing-" in name or "holder" in name]
    assert place.content(**cache) == content
    big.max_rows = 100  # What fits is prepared all the same.
    assert len(prepare_source(encoder, open_chunks(big))) == 100


def damage_size(folder: Path) -> None:
    (folder / "ids.bin").write_bytes((folder / "ids.bin").read_bytes()[:-3])


def damage_missing(folder: Path) -> None:
    (folder / "ends.npy").unlink()


def damage_meta(folder: Path) -> None:
    (folder / "meta.json").write_text('{"files": {')


@pytest.mark.parametrize("damage", [damage_size, damage_missing, damage_meta])
def test_a_damaged_cache_is_named(place: Place, damage: Callable[[Path], None]) -> None:
    place.sign("go")
    place.store()
    damage(place.store_folder)
    for use in (place.store, place.known):
        with pytest.raises(DataError) as caught:
            use()
        assert "source 'rows': the prepared tokens in" in str(caught.value)
        assert str(place.store_folder) in str(caught.value)
        assert "remove that folder" in str(caught.value)


def test_what_changed_is_made_anew_and_what_was_is_found_again(place: Place) -> None:
    place.sign("go")
    short, long = place.content(max_length=32), place.content(max_length=64)
    assert max(map(len, short[1])) == 32 < max(map(len, long[1]))
    reads = len(place.workers())
    assert place.content(max_length=32) == short
    assert len(place.workers()) == reads
    rows = place.folder / "rows.jsonl"
    rows.write_text(rows.read_text().replace("row 7 ", "ROW 7 "))
    changed = place.content(max_length=32)
    assert changed[1][8:] == short[1][8:] and changed[1][7] != short[1][7]


def test_names_are_made_fit_for_files(place: Place, tmp_path: Path) -> None:
    place.sign("go")
    encoder = place.encoder()
    encoder.source.name = "../a/b:c " + "x" * 300
    folder = store_folder(encoder, open_chunks(encoder.source))
    assert folder.parent == tmp_path / "cache" / "data"
    assert len(prepare_source(encoder, open_chunks(encoder.source))) == ROWS


def test_a_source_without_examples_is_refused_and_not_kept(place: Place) -> None:
    encoder = place.encoder()
    encoder.source.where = {"id": [-5]}
    with pytest.raises(DataError, match="source 'rows' holds no example"):
        prepare_source(encoder, open_chunks(encoder.source))
    assert not [name for name in place.in_cache() if not name.endswith(".failed")]


def test_threads_of_one_process_do_not_meet(place: Place) -> None:
    """Locks hold between threads, too. (A tokenizer belongs to one thread: each has its own.)"""
    place.sign("go")
    found: list[Any] = []

    def work(own: Place) -> None:
        found.append(own.content())

    places = [copy.copy(place) for _ in range(3)]
    for own in places:
        own.tokenizer = copy.deepcopy(place.tokenizer)
    threads = [threading.Thread(target=work, args=(own,)) for own in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and found[0] == found[1] == found[2]
    assert len(place.workers()) == 1
