"""Issue table 2: no run, checkpoint or upload is lost to another process."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.processes import start
from tests.trust.files_helpers import die_everywhere, in_a_container, may_contain

from controlllm.common import disk, files

containers = pytest.mark.skipif(
    sys.platform != "linux" or not may_contain(), reason="namespaces of processes are not allowed"
)


# ---- 1: two runs in one folder ----


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
        monkeypatch.setattr(disk, "exchange", lambda one, other: False)
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
        disk.exchange = lambda one, other: False
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


# ---- 5: two loads of one remote run ----


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
