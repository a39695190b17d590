"""Faults: killed processes, full and read-only disks, damaged checkpoints, slow servers."""

import json
import os
import random
import shutil
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import soak
from tests.processes import run_ranks, values
from tests.webhdfs import WebHdfs

from controlllm.checkpoint import load_checkpoint, newest_checkpoint
from controlllm.checkpoint.training.manifest import verify_manifest
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.storage.files import folder_bytes
from controlllm.common.storage.held import Holder
from controlllm.train import RunConfig, train

KILLS = 3
STEPS = 18


@pytest.fixture
def a_run(place: Path, tmp_path: Path) -> Any:
    """`a_run(until, folder=None, **training)`: it stops after that step, of eight."""

    def make(until: int = 4, folder: Path | None = None, **training: Any) -> RunConfig:
        return run_until(place, folder or tmp_path / "run", until, **training)

    return make


def run_until(place: Path, folder: Path, until: int, **training: Any) -> RunConfig:
    values = soak.run_config(place, "unused", 8).to_dict()
    # Where it stops is not part of what run it is; a step is two rows by each of two processes.
    tokens = {"max_tokens": until * 2 * 2 * 32 - 60} if until < 8 else {}
    output = {"output_dir": str(folder), "save_steps": 2, "save_total_limit": None}
    values["training"] |= output | tokens | training
    return RunConfig.from_dict(values)


def train_by_two(run: RunConfig, folder: Path) -> list[Any]:
    """Train in two processes; what became of each: an error, or why it stopped."""
    return run_ranks(lambda rank: train(run).stopped_because, 2, folder, timeout=90)


@pytest.fixture(scope="module")
def two_checkpoints(place: Path) -> Path:
    """A finished run of two processes: checkpoint-2 and checkpoint-4."""
    run = run_until(place, place / "finished", 4)
    assert values(train_by_two(run, place / "processes")) == ["max_tokens"] * 2
    return Path(run.training.output_dir)


@pytest.mark.slow
def test_killed_again_and_again_it_is_the_undisturbed_run(place: Path, tmp_path: Path) -> None:
    """One process, the first, or both, at steps and while saving: see benchmarks/soak.py."""
    chance = random.Random(int(os.environ.get("SOAK_SEED", "3")))
    straight = soak.Soak(soak.run_config(place, "straight", STEPS), 2, chance, tmp_path / "logs")
    straight.until_done(0)
    killed = soak.Soak(soak.run_config(place, "killed", STEPS), 2, chance, tmp_path / "logs")
    killed.until_done(KILLS)
    assert len(killed.kills) == KILLS, killed.kills
    soak.require_same(killed.folder, straight.folder)
    assert not list(killed.folder.glob(".*"))


def remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)


@pytest.mark.parametrize("free", [0.1, 1.8])
def test_a_full_disk_is_told_by_all_and_leaves_older_checkpoints(
    a_run: Any, tmp_path: Path, small_disk: Path, two_checkpoints: Path, free: float
) -> None:
    """There is room for so many checkpoints; what does not fit is the state, or some parts."""
    folder = small_disk / "run"
    remount(small_disk, "size=64m")
    shutil.copytree(two_checkpoints, folder)
    size = folder_bytes(folder / "checkpoint-4")
    used = sum(-(-file.stat().st_size // 4096) for file in folder.rglob("*") if file.is_file())
    limit = used * 4096 + int(free * size)
    remount(small_disk, f"size={limit}")
    run = a_run(8, folder)
    run.logging.report_to = []  # Or it may be the metrics that do not fit.
    outcomes = train_by_two(run, tmp_path / "processes")
    for outcome in outcomes:
        assert outcome.error is not None, outcomes
        assert outcome.error.startswith("CheckpointError: "), outcome.error
        assert "cannot write" in outcome.error and "No space left" in outcome.error
        assert f"run/checkpoint-{6 if free < 1 else 8}" in outcome.error
        assert "writing-" not in outcome.error and "Traceback" not in outcome.error
        assert outcome.error.count("\n") == 0
    steps = [2, 4] if free < 1 else [2, 4, 6]
    names = {f"checkpoint-{step}" for step in steps}
    assert {path.name for path in folder.glob("*checkpoint-*")} == names
    for name in names:
        verify_manifest(folder / name)
    if free < 1:
        return
    # With more space the same run goes on.
    remount(small_disk, "size=64m")
    outcomes = train_by_two(a_run(8, folder), tmp_path / "processes")
    assert values(outcomes) == ["max_steps"] * 2


@pytest.mark.parametrize("when", ["before", "while it runs"])
def test_a_disk_that_becomes_read_only(
    a_run: Any,
    tmp_path: Path,
    small_disk: Path,
    two_checkpoints: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    from controlllm.checkpoint.training.writer import CheckpointWriter

    remount(small_disk, "size=64m")
    folder = small_disk / "run"
    shutil.copytree(two_checkpoints, folder)
    save = CheckpointWriter.save

    def save_to_read_only(self: CheckpointWriter, state: Any) -> Any:
        if self.ranks.rank == 0:
            os.system(f"mount -o remount,ro {small_disk} 2> /dev/null")
        return save(self, state)

    if when == "before":
        remount(small_disk, "ro")
    else:
        # A file that is open for writing, as the metrics and the run's lock are, would keep the
        # system from changing.
        monkeypatch.setattr(CheckpointWriter, "save", save_to_read_only)
        monkeypatch.setattr("controlllm.train.run.occupied", lambda *_: nullcontext())
    run = a_run(8, folder)
    run.logging.report_to = []
    try:
        outcomes = train_by_two(run, tmp_path / "processes")
    finally:
        remount(small_disk, "rw")
    for outcome in outcomes:
        kind = "ConfigError: " if when == "before" else "CheckpointError: "
        assert kind in str(outcome.error), outcomes
        assert "Read-only file system" in str(outcome.error)
    assert {path.name for path in folder.glob("*checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    verify_manifest(folder / "checkpoint-4")


def test_a_file_in_the_place_of_the_folder(a_run: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    runs = [a_run(), a_run(folder=tmp_path / "run" / "inside")]

    def refused(rank: int) -> list[str]:
        found = []
        for run in runs:
            with pytest.raises(ConfigError) as error:
                train(run)
            found.append(str(error.value))
        return found

    for messages in values(run_ranks(refused, 2, tmp_path / "processes")):
        assert "is a file; choose a folder" in messages[0]
        assert "cannot be written: Not a directory" in messages[1]
    assert (tmp_path / "run").read_text() == "mine"


def truncate(folder: Path) -> str:
    path = shard(folder)
    path.write_bytes(path.read_bytes()[:-7])
    return f"{path} is truncated"


def corrupt(folder: Path) -> str:
    path = shard(folder)
    content = bytearray(path.read_bytes())
    content[-100] ^= 0x10
    path.write_bytes(content)
    return f"{path} is damaged"


def remove(folder: Path) -> str:
    shard(folder).unlink()
    return f"{folder} lacks its file {shard(folder, gone=True).name}"


def newer(folder: Path) -> str:
    change_manifest(folder, version=99)
    return f"{folder / 'manifest.json'} has checkpoint format 99, newer than"


def foreign(folder: Path) -> str:
    change_manifest(folder, format="other")
    return f"{folder / 'manifest.json'} was not written by this library"


def half_a_manifest(folder: Path) -> str:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return f"{folder / 'manifest.json'}: files is missing"


def no_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return f"{folder} is not a whole training checkpoint"


def shard(folder: Path, gone: bool = False) -> Path:
    """The second process's part."""
    if gone:
        return folder / "shard-00002-model-00001-of-00001.safetensors"
    return sorted(folder.glob("shard-*.safetensors"))[1]


def change_manifest(folder: Path, **values: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "damage", [truncate, corrupt, remove, newer, foreign, half_a_manifest, no_manifest]
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, two_checkpoints: Path, damage: Any) -> None:
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(two_checkpoints / "checkpoint-4", folder)
    told = damage(folder)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder)
    assert told in str(error.value)


@pytest.mark.parametrize("damage", [corrupt, no_manifest])
def test_a_damaged_checkpoint_is_passed_over(
    a_run: Any, tmp_path: Path, two_checkpoints: Path, damage: Any
) -> None:
    """By `auto`, once and on the first process only; by its name it is an error on all."""
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    damaged = folder / "checkpoint-4"
    told = damage(damaged)
    by_name = a_run(6, folder, resume_from_checkpoint=str(damaged))
    run = a_run(6, folder, resume_from_checkpoint="auto")

    def call(rank: int) -> Any:
        with pytest.raises(CheckpointError) as error:
            train(by_name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = train(run)
        passed = [str(w.message) for w in caught if "Passing over" in str(w.message)]
        return str(error.value), result.stopped_because, passed

    first, second = values(run_ranks(call, 2, tmp_path / "processes", timeout=90))
    assert told in first[0] and told in second[0]
    assert first[1] == second[1] == "max_tokens"
    assert len(first[2]) == 1 and told in first[2][0]
    assert second[2] == []
    newest = newest_checkpoint(folder)
    assert newest is not None and newest.name == "checkpoint-6"
    verify_manifest(folder / "checkpoint-2")
    verify_manifest(damaged)  # It was reached again, and saved again.


def test_clocks_say_nothing_about_which_is_newest(
    a_run: Any, tmp_path: Path, two_checkpoints: Path
) -> None:
    """Times in the past and in the future, as other machines' clocks may write them."""
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    now = time.time()
    for path, when in ((folder / "checkpoint-2", now + 1e7), (folder / "checkpoint-4", now - 1e9)):
        for file in [*path.iterdir(), path]:
            os.utime(file, (when, when))
    for stale, when in (("5", now + 1e7), ("6", now - 1e7)):
        leftover = folder / f".checkpoint-{stale}.controlllm.writing-00000000000{stale}"
        half = leftover / "shard-00001-model-00001-of-00001.safetensors"
        leftover.mkdir()
        half.write_bytes(b"half")
        lock = leftover / ".controlllm.lock"
        lock.write_text(replace(Holder.this(), host="elsewhere", boot="another").to_text())
        for path in (half, lock, leftover):
            os.utime(path, (when, when))
    assert newest_checkpoint(folder) == folder / "checkpoint-4"
    assert values(train_by_two(a_run(6, folder), tmp_path / "processes")) == ["max_tokens"] * 2
    rows = [row["step"] for row in soak.rows_of(folder) if "train/loss" in row]
    assert rows == [1, 2, 3, 4, 5, 6]
    # What another machine began long ago is cleared away; what it may be writing now is not.
    assert [path.name[:13] for path in folder.glob(".*")] == [".checkpoint-5"]


def test_half_written_leftovers_are_cleared_away(
    a_run: Any, tmp_path: Path, two_checkpoints: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    leftover = folder / ".checkpoint-6.controlllm.writing-0123456789ab" / "checkpoint-6"
    shutil.copytree(two_checkpoints / "checkpoint-4", leftover)
    shard(leftover).write_bytes(b"half")
    assert values(train_by_two(a_run(4, folder), tmp_path / "processes")) == ["max_tokens"] * 2
    assert not list(folder.glob(".*"))


@pytest.fixture
def slow_hdfs(tmp_path: Path) -> Iterator[WebHdfs]:
    with WebHdfs(tmp_path / "hdfs") as server:
        yield server


def test_a_slow_copy_is_no_process_that_does_not_answer(
    a_run: Any, tmp_path: Path, slow_hdfs: WebHdfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy takes longer than `parallel.timeout`, by which nobody may be kept waiting."""
    from controlllm.checkpoint.mirror.upload import Uploader
    from controlllm.common import distributed

    monkeypatch.setattr(distributed, "SLACK_SECONDS", 1.0)
    send = Uploader.send

    def send_slowly(self: Uploader, checkpoint: Path) -> None:
        time.sleep(6.0)
        send(self, checkpoint)

    monkeypatch.setattr(Uploader, "send", send_slowly)
    run = a_run(4, remote_dir=slow_hdfs.address + "runs/seven", save_steps=4)
    run.parallel.timeout = 3.0

    def call(rank: int) -> Any:
        result = train(run)
        return result.stopped_because, [t.name for t in threading.enumerate() if t.name == "upload"]

    assert (
        values(run_ranks(call, 2, tmp_path / "processes", timeout=90)) == [("max_tokens", [])] * 2
    )
    there = slow_hdfs.folder / "runs" / "seven"
    verify_manifest(there / "checkpoint-4")
    assert list(soak.rows_of(there)) == list(soak.rows_of(tmp_path / "run"))


def test_a_copy_that_fails_is_told_by_all(
    a_run: Any, tmp_path: Path, slow_hdfs: WebHdfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(8, remote_dir=slow_hdfs.address + "runs/seven")
    slow_hdfs.faults.disk_bytes = 100_000
    outcomes = train_by_two(run, tmp_path / "processes")
    for outcome in outcomes:
        assert str(outcome.error).startswith("CheckpointError: rank 0: "), outcomes
        assert "checkpoint-2 is saved, but could not be copied" in str(outcome.error)
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    verify_manifest(newest)
