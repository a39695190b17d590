"""One process does the work, the others wait for it: with real processes."""

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.processes import Outcome, run_processes, start, values

from controlllm.common.errors import DataError
from controlllm.common.storage.lock import make_once

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.005)


class Workplace:
    """A target that one process makes; `go` lets it end, `began` says that it is at work."""

    def __init__(self, folder: Path) -> None:
        self.target, self.began, self.go = (folder / n for n in ("target", "began", "go"))
        self.log = folder / "log"

    def make(self, error: str | None = None) -> Callable[[], None]:
        def work() -> None:
            with self.log.open("a") as log:
                log.write(f"{os.getpid()}\n")
            self.began.touch()
            wait_for(self.go)
            if error:
                raise DataError(error)
            self.target.write_text("whole")

        return work

    def call(self, timeout: float = 30, error: str | None = None) -> Callable[[], str]:
        def run() -> str:
            make_once(self.target, self.target.exists, self.make(error), timeout)
            return self.target.read_text()

        return run

    def workers(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path / "place")


@pytest.fixture(autouse=True)
def made(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    workplace.target.parent.mkdir()
    # import-linter, which other tests run, disables loggers.
    monkeypatch.setattr(logging.getLogger("controlllm.common.storage.lock"), "disabled", False)


def release_soon(workplace: Workplace) -> Callable[[], None]:
    def wait() -> None:
        wait_for(workplace.began)
        time.sleep(0.3)
        workplace.go.touch()

    return wait


def test_one_works_and_all_have_it(workplace: Workplace, tmp_path: Path) -> None:
    calls = [*[workplace.call()] * 4, release_soon(workplace)]
    assert values(run_processes(calls, tmp_path))[:4] == ["whole"] * 4
    assert len(workplace.workers()) == 1
    assert not workplace.target.with_name("target.holder").exists()
    make_once(workplace.target, workplace.target.exists, pytest.fail, 0)  # nothing left to do


def test_waiters_fail_with_the_words_of_the_one_that_works(
    workplace: Workplace, tmp_path: Path
) -> None:
    words = "source 'gsm8k': rows.jsonl:3: no text"
    calls = [*[workplace.call(error=words)] * 3, release_soon(workplace)]
    outcomes: list[Outcome] = run_processes(calls, tmp_path)
    assert [o.error for o in outcomes[:3]] == [f"DataError: {words}"] * 3
    assert len(workplace.workers()) == 1
    # Whoever comes later may try: what was wrong may have been mended.
    assert values(run_processes([workplace.call()], tmp_path)) == ["whole"]
    assert not workplace.target.with_name("target.failed").exists()


def test_a_wait_ends_and_says_who_is_waited_for(workplace: Workplace, tmp_path: Path) -> None:
    holder = start(workplace.call())
    wait_for(workplace.began)
    pattern = rf"waited 0\.2 s for .*process {holder.pid} on .* prepares .*place/target\. .*timeout"
    with pytest.raises(DataError, match=pattern):
        workplace.call(timeout=0.2)()
    assert workplace.workers() == [str(holder.pid)]
    workplace.go.touch()
    holder.join(20)


def test_a_wait_is_told_as_it_begins(
    workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    holder = start(workplace.call())
    wait_for(workplace.began)
    with pytest.raises(DataError, match="waited"):
        workplace.call(timeout=0.2)()
    told = f"Waiting up to 0.2 s for process {holder.pid} on "
    assert told in caplog.text and f"which makes {workplace.target}" in caplog.text
    workplace.go.touch()
    holder.join(20)
    caplog.clear()
    assert workplace.call()() == "whole"
    assert not caplog.text


def test_the_lock_of_a_killed_process_is_free(workplace: Workplace) -> None:
    holder = start(workplace.call())
    wait_for(workplace.began)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(20)
    workplace.go.touch()
    assert workplace.call(timeout=5)() == "whole"
    assert workplace.workers() == [str(holder.pid), str(os.getpid())]


def test_places_that_cannot_be_locked_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "cache" / "store"
    with pytest.raises(DataError, match=r"store cannot be prepared: .*`data\.cache_dir`"):
        make_once(target, target.exists, pytest.fail, 1)


def test_a_full_disk_tells_the_reason_not_its_consequences(small_disk: Path) -> None:
    """Not even a note of the failure fits; the words are still those of the failure."""
    target = small_disk / "cache" / "store"

    def fail() -> None:
        with (small_disk / "big").open("wb", buffering=0) as big, pytest.raises(OSError):
            while True:
                big.write(b"0" * 4096)
        raise DataError("no room for rows")

    with pytest.raises(DataError, match="no room for rows"):
        make_once(target, target.exists, fail, 1)
    (small_disk / "big").unlink()
    make_once(target, target.exists, lambda: target.write_text("x") and None, 1)
    assert target.read_text() == "x"
