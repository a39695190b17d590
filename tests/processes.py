"""Real processes for tests: forked, so that a start costs little, and with an end to every wait."""

import faulthandler
import gc
import multiprocessing
import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

__all__ = ["Outcome", "run_processes", "run_ranks", "start", "values"]

FORK = multiprocessing.get_context("fork")
_WATCHED: list[Any] = []
"""The file for the stacks of this process, or of the one that it was forked from."""


@dataclass(frozen=True)
class Outcome:
    """What came of a process."""

    value: Any = None
    error: str | None = None
    """`Kind: words` of what it raised."""
    trace: str = ""


def start(function: Callable[..., Any], *args: Any) -> Any:
    """Start a process that calls a function; nothing is pickled."""
    process = FORK.Process(target=_begin, args=(function, *args))
    process.start()
    return process


def _begin(function: Callable[..., Any], *args: Any) -> None:
    """What a thread of the parent held when this process was forked, nobody would give back."""
    tqdm.set_lock(threading.RLock())
    gc.freeze()  # Or its first full collection would copy the memory of the parent.
    function(*args)


def run_processes(functions: Sequence[Callable[[], Any]], folder: Path, timeout: float = 60) -> Any:
    """Call each function in a process of its own, all at once.

    Args:
        functions: what to call; the values they return are pickled.
        folder: for what they return.
        timeout: seconds after which all are killed.

    Returns:
        The outcome of each, in order.

    Raises:
        TimeoutError: one of them did not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"outcome-{i}" for i in range(len(functions))]
    wait = max(timeout - 5, 1)
    processes = [start(_note, f, path, wait) for f, path in zip(functions, files, strict=True)]
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    stuck = [i for i, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    outcomes = [pickle.loads(f.read_bytes()) if f.exists() else Outcome() for f in files]
    if stuck:
        found = [files[i].with_suffix(".stacks") for i in stuck]
        stacks = [path.read_text() for path in found if path.exists()]
        raise TimeoutError(
            f"processes {stuck} did not end in {timeout} s; the others: {outcomes}\n"
            + "\n".join(stacks)
        )
    return outcomes


def run_ranks(
    function: Callable[[int], Any], count: int, folder: Path, timeout: float = 60
) -> list[Outcome]:
    """Call `function(rank)` in so many processes that form a gloo group."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / f"store-{time.monotonic_ns()}"

    def ranked(rank: int) -> Callable[[], Any]:
        def call() -> Any:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            dist.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=count,
                timeout=timedelta(seconds=timeout),
            )
            try:
                return function(rank)
            finally:
                dist.destroy_process_group()

        return call

    return run_processes([ranked(rank) for rank in range(count)], folder, timeout)


def values(outcomes: Sequence[Outcome]) -> list[Any]:
    """What processes returned, none of which may have failed."""
    assert [outcome.trace for outcome in outcomes] == [""] * len(outcomes), outcomes
    return [outcome.value for outcome in outcomes]


def _note(function: Callable[[], Any], path: Path, wait: float) -> None:
    """Write down what comes of a function; and where it is, if it has not ended by then."""
    if not _WATCHED:  # The timer of a parent can neither be reset nor replaced after a fork.
        _WATCHED.append(path.with_suffix(".stacks").open("w"))
        faulthandler.dump_traceback_later(wait, file=_WATCHED[0])
    try:
        outcome = Outcome(function())
    except BaseException as error:
        outcome = Outcome(None, f"{type(error).__name__}: {error}", traceback.format_exc())
    part = path.with_suffix(".part")
    part.write_bytes(pickle.dumps(outcome))
    part.replace(path)
