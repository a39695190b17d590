"""Atomic writing, with real interruptions: killed writers, a full disk, a name already taken."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from controlllm.common.errors import CheckpointError
from controlllm.common.storage import files, held
from controlllm.common.storage.held import Holder

SLOW_WRITER = """
import sys, time
from pathlib import Path
from controlllm.common.storage.files import atomic_folder
with atomic_folder(sys.argv[1], overwrite=True) as folder:
    (folder / "half.txt").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def kill_writer_of(folder: Path) -> None:
    """Start a process that writes `folder` slowly, and kill it half-way."""
    writer = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()


def test_text_and_json_round_trip(tmp_path: Path) -> None:
    files.write_text(tmp_path / "deep" / "a.txt", "grüße")
    files.write_json(tmp_path / "a.json", {"x": [1, 2.5, None]})
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "grüße"
    assert files.read_json(tmp_path / "a.json") == {"x": [1, 2.5, None]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "deep"]


def test_value_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, 1)
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        files.write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == 1


def test_broken_and_missing_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"a\.json cannot be read as JSON"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(CheckpointError, match=r"b\.json is missing"):
        files.read_json(tmp_path / "b.json")


def test_error_inside_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), files.atomic_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_non_empty_folder_is_refused_unless_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    files.write_text(target / "old.txt", "old")
    with pytest.raises(CheckpointError, match="not empty"), files.atomic_folder(target):
        pass
    with files.atomic_folder(target, overwrite=True) as folder:
        (folder / "new.txt").write_text("new")
        assert (target / "old.txt").exists()
    assert [path.name for path in target.iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_writer_leaves_the_old_folder_and_its_leftover_is_cleaned(tmp_path: Path) -> None:
    target = tmp_path / "out"
    files.write_text(target / "old.txt", "old")
    kill_writer_of(target)
    leftovers = [path for path in tmp_path.iterdir() if ".controlllm.writing-" in path.name]
    assert len(leftovers) == 1
    assert [path.name for path in target.iterdir()] == ["old.txt"]
    files.write_text(tmp_path / "other.txt", "the next writer into the same folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.txt", "out"]


def test_leftover_of_a_living_writer_stays(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "out") as folder:
        assert files.clean_leftovers(tmp_path) == []
        assert folder.exists()


@pytest.mark.parametrize("locks", [True, False])
def test_leftover_of_another_kernel_stays_for_a_day(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some disks that machines share do not share locks: a free lock says nothing there."""
    monkeypatch.setattr(held, "_lock", lambda path, handle: locks)
    elsewhere = tmp_path / ".x.controlllm.writing-0123456789ab"
    lock = elsewhere / ".controlllm.lock"
    files.write_json(lock, {**asdict(Holder.this()), "boot": "another"})
    assert files.clean_leftovers(tmp_path) == []
    os.utime(elsewhere, (0, 0))
    assert files.clean_leftovers(tmp_path) == []  # Something in it was written a moment ago.
    os.utime(lock, (0, 0))
    os.utime(elsewhere, (0, 0))
    assert files.clean_leftovers(tmp_path) == [elsewhere]


def test_without_locks_the_process_that_is_gone_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_lock", lambda path, handle: False)
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid, name in ((ended.pid, "0123456789aa"), (os.getppid(), "0123456789bb")):
        lock = tmp_path / f".x.controlllm.writing-{name}" / ".controlllm.lock"
        lock.parent.mkdir()
        lock.write_text(replace(Holder.this(), pid=pid).to_text())
    removed = files.clean_leftovers(tmp_path)
    assert [path.name for path in removed] == [".x.controlllm.writing-0123456789aa"]


@pytest.mark.parametrize("note", ["", "{", "[1]", '{"host": 1}', '{"pid": null}', "\x00\xff"])
def test_a_note_that_says_nothing_is_no_traceback(tmp_path: Path, note: str) -> None:
    lock = tmp_path / ".x.controlllm.writing-0123456789ab" / ".controlllm.lock"
    lock.parent.mkdir()
    lock.write_text(note)
    assert files.clean_leftovers(tmp_path) == [lock.parent]


def test_a_folder_takes_the_name_of_no_file(tmp_path: Path) -> None:
    files.write_text(tmp_path / "out", "mine")
    with (
        pytest.raises(CheckpointError, match="is a file"),
        files.atomic_folder(tmp_path / "out", overwrite=True),
    ):
        pass
    assert (tmp_path / "out").read_text() == "mine"


def test_full_disk_is_named_and_leaves_older_files(small_disk: Path) -> None:
    with files.atomic_folder(small_disk / "old") as folder:
        files.save_tensors(folder / "a.safetensors", {"a": torch.ones(10)})
    with (
        pytest.raises(CheckpointError, match=r"cannot write .*new.*[Nn]o space left"),
        files.atomic_folder(small_disk / "new") as folder,
    ):
        files.save_tensors(folder / "a.safetensors", {"a": torch.ones(1_000_000)})
    assert [path.name for path in small_disk.iterdir()] == ["old"]
    assert load_file(small_disk / "old" / "a.safetensors")["a"].sum() == 10


def test_full_disk_while_writing_text(small_disk: Path) -> None:
    files.write_text(small_disk / "a.txt", "old")
    with pytest.raises(CheckpointError, match="No space left"):
        files.write_text(small_disk / "a.txt", "x" * 4_000_000)
    assert (small_disk / "a.txt").read_text() == "old"


def test_file_size_limit_is_an_error_of_ours(tmp_path: Path) -> None:
    program = (
        "import resource, sys, torch\n"
        "from controlllm.common.storage.files import atomic_file, save_tensors\n"
        "from controlllm.common.errors import CheckpointError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    with atomic_file(sys.argv[1]) as path:\n"
        "        save_tensors(path, {'a': torch.ones(100_000)})\n"
        "except CheckpointError as error:\n"
        "    print(error)\n"
    )
    target = tmp_path / "a.safetensors"
    result = subprocess.run(
        [sys.executable, "-c", program, str(target)], capture_output=True, text=True, check=True
    )
    assert f"cannot write {target}: Error while serializing" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "same": base, "row": base[1], "turned": base.T}
    files.save_tensors(tmp_path / "a.safetensors", tensors, {"format": "pt"})
    loaded = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
