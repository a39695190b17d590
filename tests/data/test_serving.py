"""Worker processes: the same batches, exact states, errors that say what happened, no leftovers."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import ref

import psutil
import pytest
import torch
from tests.processes import start
from tests.webhdfs import WebHdfs
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.data import Batch, DataConfig, SourceConfig, TrainLoader, register_format
from controlllm.data.sources.ranges import RangeChunks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in (("a", 50), ("b", 20)):
        rows = [{"text": f"{name}{i:03d}" + "." * (i * 7 % 13)} for i in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def make(folder: Path, pico_tokenizer: PreTrainedTokenizerBase) -> Iterator[Any]:
    """`make(**config)`: a loader over two sources; closed at the end, if it is still there."""
    loaders: list[ref[TrainLoader]] = []

    def make_loader(**options: Any) -> TrainLoader:
        given: dict[str, Any] = {
            "train": [SourceConfig(f"{folder}/{name}.jsonl") for name in "ab"],
            "max_length": 32,
            "lanes": 6,
        }
        if options.get("packing", True):
            given["packing_lookahead"] = 5
        config = DataConfig(**{**given, **options})
        loader = TrainLoader(config, pico_tokenizer, 2, seed=0)
        loaders.append(ref(loader))
        return loader

    yield make_loader
    for known in loaders:
        if (loader := known()) is not None:
            loader.close()


def children() -> set[int]:
    """Processes that are there, zombies too."""
    found = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(pid) for pid in found.read_text().split()} if found.exists() else set()


def plain(batch: Batch) -> dict[str, Any]:
    return {key: value.tolist() if hasattr(value, "tolist") else value
            for key, value in batch.items()}  # fmt: skip


@pytest.mark.parametrize("packing", [True, False])
def test_any_number_of_workers_gives_the_same_batches_and_states(make: Any, packing: bool) -> None:
    """Workers read ahead, and still each state is the one behind the batches given out."""
    straight = make(packing=packing)
    states, batches = [], []
    for _ in range(15):
        states.append(json.dumps(straight.state_dict()))
        batches.append(plain(next(straight)))
    for workers in (1, 2, 3):
        loader = make(packing=packing, num_workers=workers, prefetch_factor=3)
        for state, batch in zip(states, batches, strict=True):
            assert json.dumps(loader.state_dict()) == state
            assert plain(next(loader)) == batch
        assert loader.progress() == straight.progress()
        loader.load_state_dict(json.loads(states[4]))
        assert [plain(next(loader)) for _ in range(5)] == batches[4:9]


def test_the_end_comes_for_all_lanes(make: Any, folder: Path) -> None:
    """Lanes of unequal length, in workers or not: every row once, then the end, again and again."""
    sources = [SourceConfig(f"{folder}/{name}.jsonl", epochs=1) for name in "ab"]
    ends = []
    for workers in (0, 2, 3):
        loader = make(train=sources, packing=False, num_workers=workers)
        ends.append([plain(batch) for batch in loader])
        assert next(loader, None) is None
    assert ends[0] == ends[1] == ends[2]
    assert sum(len(batch["input_ids"]) for batch in ends[0]) == 70


def test_workers_leave_the_random_numbers_of_the_run_alone(make: Any) -> None:
    before = torch.get_rng_state()
    next(make(num_workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_killed_worker_is_told(make: Any) -> None:
    """Not where it happens to be noticed, but when the next batch is asked for; and no hang."""
    before = children()
    loader = make(num_workers=2, prefetch_factor=2)
    next(loader)
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid or 0, signal.SIGKILL)
    for _ in range(200):  # Nothing is raised here, in the middle of a step.
        time.sleep(0.001)
    with pytest.raises(
        DataError, match=rf"data worker process died .*{victim.pid}.*num_workers"
    ) as caught:
        for _ in range(100):
            next(loader)
    with pytest.raises(DataError, match="data worker process died"):
        next(loader)
    loader.close()
    assert children() - before == set()  # though the error still holds all that led to it
    assert caught.value.__cause__


def test_a_bad_row_in_a_worker_is_named(make: Any, folder: Path) -> None:
    path = folder / "a.jsonl"
    path.write_text(path.read_text().replace('"text": "a005', '"txt": "a005'))
    loader = make(num_workers=2)
    with pytest.raises(DataError, match=r"source 'a': .*a\.jsonl:6: no format fits"):
        for _ in range(100):
            next(loader)


def test_what_breaks_in_a_worker_is_told_with_its_place(make: Any, folder: Path) -> None:
    @register_format("test_serving.breaks")
    def convert(row: Any) -> str:
        if row["text"].startswith("a007"):
            raise SystemError("it broke")
        return str(row["text"])

    source = SourceConfig(f"{folder}/a.jsonl", format="test_serving.breaks")
    with pytest.raises(DataError, match="it broke"):
        for _ in range(100):
            next(make(train=[source], num_workers=1))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("way", ["closed", "deleted", "ended", "wound back"])
def test_no_worker_is_left(make: Any, folder: Path, way: str) -> None:
    before = children()
    sources = [SourceConfig(f"{folder}/a.jsonl", epochs=1 if way == "ended" else None)]
    loader = make(train=sources, num_workers=2)
    state = loader.state_dict()
    next(loader)
    assert len(children() - before) == 2
    if way == "closed":
        loader.close()
        loader.close()
    elif way == "deleted":
        del loader
    elif way == "ended":
        assert len(list(loader)) > 1
        loader.close()
    else:
        loader.load_state_dict(state)
    assert children() - before == set()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_no_worker_is_left_after_an_error(make: Any, folder: Path) -> None:
    before = children()
    (folder / "a.jsonl").write_text('{"txt": 1}\n' * 9)
    loader = make(num_workers=2)
    with pytest.raises(DataError, match="no format fits") as caught:
        for _ in range(100):
            next(loader)
    loader.close()  # while the error, and all that it holds, is still at hand
    assert children() - before == set()
    assert caught.value


def test_workers_read_from_hdfs_by_connections_of_their_own(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    """The open connections of this process are no use to two forked ones at once."""
    pytest.importorskip("requests")
    rows = [{"text": f"row {i} " + "." * (i % 90)} for i in range(1500)]

    def draw(path: str, num_workers: int) -> list[Any]:
        source = SourceConfig(path, max_row_bytes=4096)
        config = DataConfig(
            [source], max_length=64, num_workers=num_workers, lanes=3, shuffle_buffer=16
        )
        loader = TrainLoader(config, pico_tokenizer, 2, seed=0)
        batches = [next(loader)["input_ids"].tolist() for _ in range(30)]
        loader.close()
        return batches

    with pytest.MonkeyPatch.context() as patch, WebHdfs(tmp_path / "hdfs") as hdfs:
        patch.setattr("controlllm.data.sources.opening.SMALL_BYTES", 0)
        patch.setattr(RangeChunks.__init__, "__defaults__", (4096,))
        path = hdfs.folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        wanted = draw(str(path), 0)
        assert draw(hdfs.address + "rows.jsonl", 0) == wanted  # keeps connections open
        assert draw(hdfs.address + "rows.jsonl", 3) == wanted


def test_workers_end_with_a_run_that_was_killed(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    """They wait for their parent's locks, which nobody gives up any more."""
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n' * 50)
    told = tmp_path / "workers"

    def read_for_ever() -> None:
        config = DataConfig([SourceConfig(str(tmp_path / "a.jsonl"))], max_length=16, num_workers=2)
        loader = TrainLoader(config, pico_tokenizer, 1, 0)
        next(loader)
        children = psutil.Process().children()
        told.with_suffix(".part").write_text(" ".join(str(child.pid) for child in children))
        told.with_suffix(".part").rename(told)
        time.sleep(60)

    run, end = start(read_for_ever), time.monotonic() + 60
    while not told.exists():
        assert run.is_alive() and time.monotonic() < end
        time.sleep(0.001)
    run.kill()
    run.join()
    workers = [int(pid) for pid in told.read_text().split()]
    assert len(workers) >= 2
    psutil.wait_procs(
        [psutil.Process(pid) for pid in workers if psutil.pid_exists(pid)], timeout=30
    )
    assert not any(psutil.pid_exists(pid) for pid in workers)
