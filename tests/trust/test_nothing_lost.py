"""Issue table 2: no run, checkpoint or upload is lost to another process."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.checkpoint.test_state import make_state
from tests.processes import run_processes, start, values
from tests.trust.files_helpers import die_everywhere, in_a_container, may_contain
from tests.webhdfs import WebHdfs

from controlllm.checkpoint import load_checkpoint, mark_best, newest_checkpoint, save_checkpoint
from controlllm.checkpoint.mirror.copies import local_copy
from controlllm.checkpoint.mirror.fetch import fetch_files
from controlllm.checkpoint.mirror.remote import RemoteRun
from controlllm.checkpoint.mirror.upload import Uploader
from controlllm.cli import main
from controlllm.common.errors import CheckpointError, ConfigError, ControlLLMError
from controlllm.common.storage import files, held, workplace
from controlllm.common.storage.files import file_digest
from controlllm.common.storage.held import Holder
from controlllm.common.storage.lock import occupied
from controlllm.train import train
from controlllm.train.config.config_io import read_yaml

containers = pytest.mark.skipif(
    sys.platform != "linux" or not may_contain(), reason="namespaces of processes are not allowed"
)


# ---- 1: two runs in one folder ----


@pytest.fixture
def running(run_config: Any, loaded: Any, tmp_path: Path) -> Iterator[Any]:
    """A process that trains in `tmp_path`/run, with a worker that reads, until it is killed."""
    long = run_config(training={"max_steps": 10**6, "save_steps": 10**6}, data={"num_workers": 1})
    process = start(lambda: train(long, loaded()))
    metrics, ends = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and "train/loss" in metrics.read_text()):
        assert process.is_alive() and time.monotonic() < ends
        time.sleep(0.02)
    yield process
    process.kill()
    process.join()


def test_a_second_run_in_the_folder_is_told_who_is_there(
    running: Any, run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    """Also one that would overwrite; the first goes on, and what it wrote is there."""
    for training in ({}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "never"}):
        with pytest.raises(
            ConfigError, match=rf"output_dir=.*run' is in use by process {running.pid} on"
        ):
            train(run_config(training=training), loaded())
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().count("\n")
    time.sleep(0.5)
    assert running.is_alive()
    assert metrics.read_text().count("\n") > lines


def test_a_killed_run_goes_on_at_once_though_its_workers_live(
    running: Any, run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    children = psutil.Process(running.pid).children(recursive=True)
    assert children
    for child in children:
        child.suspend()
    try:
        running.kill()
        running.join()
        assert (tmp_path / "run" / ".controlllm.lock").exists()
        result = train(
            run_config(training={"max_steps": 2, "resume_from_checkpoint": "auto"}), loaded()
        )
    finally:
        for child in children:
            child.kill()
    assert result.stopped_because == "max_steps"
    assert not (tmp_path / "run" / ".controlllm.lock").exists()


def test_readers_are_not_kept_out(
    running: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_yaml(tmp_path / "run" / "config.yaml")["method"] == "control"
    assert newest_checkpoint(tmp_path / "run") is None
    assert main(["compare", str(tmp_path / "run")]) == 2
    assert "can be compared" in capsys.readouterr().err  # It looked inside.


def test_calibrating_in_place_waits_for_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused before anything is loaded; the folder's own files are not looked into."""
    for name in ("sidecar.safetensors", "sidecar_config.json"):
        (tmp_path / name).write_text("{}")
    sets = [f"--data.{name}=[{{path: a.txt}}]" for name in ("learn", "retain")]
    with occupied(tmp_path, "model"):
        assert main(["calibrate", str(tmp_path), *sets]) == 2
    assert f"in use by process {os.getpid()} on" in capsys.readouterr().err


def test_a_disk_without_locks_is_told(
    run_config: Any, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_lock", lambda path, handle: False)
    with pytest.warns(
        UserWarning, match="does not support file locks: make sure that no second run"
    ):
        train(run_config(training={"max_steps": 1}), loaded())


def test_a_note_of_another_machine_is_told(tmp_path: Path) -> None:
    """Where its kernel and this one do not share locks, it may still be at work."""
    note = replace(Holder.this(), boot="another", host="node7", command="controlllm train a.yaml")
    (tmp_path / ".controlllm.lock").write_text(note.to_text())
    with (
        pytest.warns(UserWarning, match=r"last used by process \d+ on node7"),
        occupied(tmp_path, "x"),
    ):
        pass


def test_the_command_that_is_told_holds_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/bin/controlllm", "train", "a.yaml", "--training.remote_storage_options.token", "s"]
    monkeypatch.setattr(sys, "argv", words)
    assert Holder.this().command == "controlllm train a.yaml"


@pytest.mark.parametrize(
    ("place", "why"), [("/dev/null/x", "Not a directory"), ("file", "is a file"), ("/proc/x", "")]
)
def test_a_place_that_cannot_be_written_is_told_before_anything_slow(
    run_config: Any, tmp_path: Path, place: str, why: str
) -> None:
    (tmp_path / "file").write_text("mine")
    output_dir = str(tmp_path / place)
    named = rf"^training.output_dir='{output_dir}' .*{why}.*hoose (another|a) folder"
    with pytest.raises(ConfigError, match=named):
        train(run_config(model={"model_name_or_path": "x/y"}, training={"output_dir": output_dir}))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("room", [0, 16, 24, 64])
def test_a_disk_that_is_full_from_the_start_is_told(
    run_config: Any, loaded: Any, small_disk: Path, room: int
) -> None:
    """Whatever is the first that finds no room (of so many KiB)."""
    filler = small_disk / "full"
    with suppress(OSError):
        filler.write_bytes(bytes(2**21))
    os.truncate(filler, filler.stat().st_size - room * 1024)
    run = run_config(
        training={"output_dir": str(small_disk / "run")},
        logging={"report_to": ["console", "jsonl", "tensorboard"]},
    )
    with pytest.raises(ControlLLMError, match=r"small_disk/run.*No space left"):
        train(run, loaded())


# ---- 2: containers that share a host name ----


def write_in_a_container(folder: Path, go_on: int) -> int:
    """Begin to write a folder in a container, and end it once the pipe says so; its number."""
    ready, begun = os.pipe()

    def write() -> None:
        with files.atomic_folder(folder) as temporary:
            (temporary / "half.txt").write_text("half")
            os.write(begun, b"x")
            os.read(go_on, 1)

    number = in_a_container(write)
    assert os.read(ready, 1) == b"x"
    return number


@containers
def test_a_container_leaves_alone_what_another_one_writes(tmp_path: Path) -> None:
    """Neither can see whether the other's processes live: their numbers mean nothing here."""
    go_on, say = os.pipe()
    writer = write_in_a_container(tmp_path / "checkpoint-1", go_on)
    cleaner = in_a_container(lambda: files.write_text(tmp_path / "other.txt", "cleans first"))
    assert os.waitpid(cleaner, 0)[1] == 0
    assert files.clean_leftovers(tmp_path) == []
    os.write(say, b"x")
    assert os.waitpid(writer, 0)[1] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "other.txt"]


@containers
def test_what_a_killed_container_left_is_cleaned_at_once(tmp_path: Path) -> None:
    writer = write_in_a_container(tmp_path / "checkpoint-1", os.pipe()[0])
    assert files.clean_leftovers(tmp_path) == []
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    ended = time.monotonic() + 10
    while not files.clean_leftovers(tmp_path) and time.monotonic() < ended:
        time.sleep(0.01)  # Until the kernel has ended what was in it.
    assert list(tmp_path.iterdir()) == []


# ---- 3: cleaning between two renames ----


def replace_folder(target: Path) -> None:
    with files.atomic_folder(target, overwrite=True) as folder:
        (folder / "new.txt").write_text("new")


@pytest.mark.parametrize("swaps", [True, False], ids=["exchange", "two renames"])
def test_a_writer_killed_anywhere_loses_nothing(
    tmp_path: Path, swaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the name lies the old folder or the new one, whole; cleaning leaves nothing else."""
    if not swaps:
        monkeypatch.setattr(workplace, "exchange", lambda one, other: False)
    seen, target = [], tmp_path / "checkpoint-1"
    files.write_text(target / "old.txt", "old")
    for _ in die_everywhere(lambda: replace_folder(target)):
        if swaps:
            assert [path.name for path in target.iterdir()] in (["old.txt"], ["new.txt"])
        files.clean_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
        seen.append([path.name for path in target.iterdir()])
        files.remove_folder(target)
        files.write_text(target / "old.txt", "old")
    assert seen.count(["old.txt"]) > 3
    assert seen.count(["new.txt"]) > 3
    assert len(seen) == seen.count(["old.txt"]) + seen.count(["new.txt"])


def test_a_cleaner_leaves_a_living_writer_alone_between_two_renames(tmp_path: Path) -> None:
    """Where two names cannot be swapped at once."""
    target = tmp_path / "checkpoint-1"
    files.write_text(target / "old.txt", "old")
    (ready, begun), (go_on, say) = os.pipe(), os.pipe()
    rename = os.rename

    def rename_and_wait(old: Path, new: Path) -> None:
        rename(old, new)
        os.rename = rename
        os.write(begun, b"x")
        os.read(go_on, 1)

    def write() -> None:
        workplace.exchange = lambda one, other: False
        os.rename = rename_and_wait
        replace_folder(target)

    writer = start(write)
    assert os.read(ready, 1) == b"x"
    assert not target.exists()
    files.write_text(tmp_path / "other.txt", "cleans first")
    os.write(say, b"x")
    writer.join(10)
    assert writer.exitcode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "other.txt"]
    assert [path.name for path in target.iterdir()] == ["new.txt"]


def test_cleaners_killed_anywhere_lose_nothing(
    tmp_path: Path,
) -> None:
    """Also where one finishes what another one left half done between two renames."""
    leftover = tmp_path / ".out.controlllm.writing-0123456789ab"

    def stop_between_two_renames() -> None:
        files.write_text(leftover / ".controlllm.old" / "old.txt", "old")
        files.write_text(leftover / "out" / "new.txt", "new")

    stop_between_two_renames()
    for _ in die_everywhere(lambda: files.clean_leftovers(tmp_path)):
        files.clean_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["new.txt"]
        files.remove_folder(tmp_path / "out")
        stop_between_two_renames()


def test_removing_that_is_killed_anywhere_leaves_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    files.write_text(target / "a.txt", "a")
    files.write_text(target / "b.txt", "b")
    for _ in die_everywhere(lambda: files.remove_folder(target)):
        found = sorted(path.name for path in target.iterdir()) if target.exists() else []
        assert found in ([], ["a.txt", "b.txt"])
        files.clean_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] in ([], ["out"])
        files.write_text(target / "a.txt", "a")
        files.write_text(target / "b.txt", "b")


@pytest.mark.parametrize(
    "name", [".notes.replaced", ".a.writing-me-1-0", ".b.controlllm.writing-x"]
)
def test_cleaning_touches_nothing_that_only_looks_alike(tmp_path: Path, name: str) -> None:
    files.write_text(tmp_path / name / "mine.txt", "mine")
    files.write_text(tmp_path / "notes" / "a.txt", "a")
    files.clean_leftovers(tmp_path)
    assert (tmp_path / name / "mine.txt").exists()
    assert (tmp_path / "notes" / "a.txt").exists()


# ---- 4: an upload killed between remove and move ----


def uploaded(hdfs: WebHdfs, folder: Path) -> tuple[RemoteRun, Path]:
    """A run whose best checkpoint is number 3, there and here."""
    remote = RemoteRun(hdfs.address + "runs/seven")
    save_checkpoint(folder, make_state(3))
    save_checkpoint(folder, make_state(4))
    (folder / "config.yaml").write_text("preset: null\n")
    mark_best(folder, 3, {"learn_loss": 1.0})
    for step in (3, 4):
        Uploader(remote).send(folder / f"checkpoint-{step}")
    mark_best(folder, 4, {"learn_loss": 0.5})
    return remote, folder


@pytest.mark.parametrize(
    ("gateway", "renames"),
    [(False, 0), (True, 0), (True, 1), (True, 2)],
    ids=["name node", "gateway at once", "gateway, nothing moved yet", "gateway, old aside"],
)
def test_an_upload_that_is_killed_loses_no_mark(
    hdfs: WebHdfs, tmp_path: Path, gateway: bool, renames: int
) -> None:
    """It breaks off at each of its renames; the mark is read, fetched, and mended by the next."""
    remote, run = uploaded(hdfs, tmp_path / "run")
    hdfs.faults.gateway = gateway
    hdfs.faults.drops = {"RENAME": renames}
    with pytest.raises(CheckpointError, match="could not be copied"):
        Uploader(remote).send_files(run)
    hdfs.faults.drops = {}
    assert remote.best() == "checkpoint-3"
    fetch_files(remote, tmp_path / "fetched")
    assert best_checkpoint_name(tmp_path / "fetched") == "checkpoint-3"
    assert (tmp_path / "fetched" / "config.yaml").read_text() == "preset: null\n"
    Uploader(remote).send_files(run)
    assert remote.best() == "checkpoint-4"
    remote.clear()
    assert remote.best() is None


def best_checkpoint_name(folder: Path) -> str:
    """What a run folder's best.json marks."""
    return str(json.loads((folder / "best.json").read_text())["checkpoint"])


# ---- 5: two loads of one remote run ----


def test_who_loads_a_run_later_takes_nothing_from_who_reads_it(
    hdfs: WebHdfs, tmp_path: Path
) -> None:
    """A process has a copy in hand; the run changes, and is loaded by another process."""
    run = hdfs.folder / "runs" / "seven"
    saved = save_checkpoint(run, make_state(3))
    before = file_digest(saved / "manifest.json")
    (run / "tokenizer.json").write_text("first")
    ready, go = tmp_path / "ready", tmp_path / "go"

    def read() -> tuple[str, str]:
        found = local_copy(hdfs.address + "runs/seven")
        ready.touch()
        while not go.exists():
            time.sleep(0.01)
        load_checkpoint(found)
        kept = (found.parent / "tokenizer.json").read_text()
        return kept, file_digest(found / "manifest.json")

    def change() -> None:
        while not ready.exists():
            time.sleep(0.01)
        (run / "tokenizer.json").unlink()
        state = make_state(3)
        state.tensors["w"] += 1
        save_checkpoint(run, state)
        found = local_copy(hdfs.address + "runs/seven")
        assert not (found.parent / "tokenizer.json").exists()
        assert file_digest(found / "manifest.json") != before
        go.touch()

    read_outcome, change_outcome = run_processes([read, change], tmp_path)
    assert change_outcome.error is None and read_outcome.value == ("first", before)


def test_processes_that_load_at_once_fetch_once(hdfs: WebHdfs, tmp_path: Path) -> None:
    run = hdfs.folder / "runs" / "seven"
    saved = save_checkpoint(run, make_state(3, size=200_000))
    (run / "tokenizer.json").write_text("first")

    def load() -> list[str]:
        found = local_copy(hdfs.address + "runs/seven")
        load_checkpoint(found)
        return sorted(path.name for path in found.iterdir())

    loads = values(run_processes([load] * 4, tmp_path))
    assert loads == [sorted(path.name for path in saved.iterdir())] * 4
    pieces = [r.path for r in hdfs.requests if (r.node, r.op) == ("data", "OPEN")]
    assert pieces.count("/runs/seven/checkpoint-3/state.safetensors") == 1
    (run / "metrics.jsonl").write_text("{}")  # The run goes on: what is known is not fetched again.
    local_copy(hdfs.address + "runs/seven")
    pieces = [r.path for r in hdfs.requests if (r.node, r.op) == ("data", "OPEN")]
    assert pieces.count("/runs/seven/checkpoint-3/state.safetensors") == 1


def test_a_model_elsewhere_is_copied_once_per_version(hdfs: WebHdfs) -> None:
    model = hdfs.folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    first = local_copy(hdfs.address + "model")
    assert local_copy(hdfs.address + "model") == first
    (model / "config.json").write_text('{"a": 1}')
    second = local_copy(hdfs.address + "model")
    assert [(path / "config.json").read_text() for path in (first, second)] == ["{}", '{"a": 1}']


# ---- 6: atomic files sync their folder ----


def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is flushed to the disk from now on, under the name that it has at that moment."""
    seen: list[Path] = []
    real = os.fsync

    def note(handle: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    monkeypatch.setattr(os, "fsync", note)
    return seen


@pytest.mark.skipif(sys.platform != "linux", reason="looks names up in /proc")
def test_a_file_its_name_and_new_folders_are_flushed_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = synced(monkeypatch)
    files.write_text(tmp_path / "new" / "deep" / "a.txt", "a")
    assert seen[:2] == [tmp_path, tmp_path / "new"]
    assert seen[-2].name == "a.txt" != seen[-2].parent.name
    assert seen[-1] == tmp_path / "new" / "deep"
    seen.clear()
    with files.atomic_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "b.txt").write_text("b")
    assert [path.name for path in seen] == ["inner", "b.txt", "out", tmp_path.name]
    seen.clear()
    files.remove_folder(tmp_path / "out")
    assert seen == [tmp_path]
