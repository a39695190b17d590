"""Who runs the lanes of a rank: this process, or worker processes that read ahead.

Torch's `DataLoader` starts the workers, takes from them in turn, and notices when one dies. With
each item comes the state of its lane behind it, so the loader's state never runs ahead of what was
given out. Worker `w` of `W` serves every `W`-th lane, which keeps the order that one process has.
"""

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread, current_thread, main_thread
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from controlllm.common.errors import ControlLLMError, DataError
from controlllm.data.loader.batchers import Item
from controlllm.data.loader.lane import Lane, LaneState

__all__ = ["MakeLane", "Serving", "serve"]

MakeLane = Callable[[int], Lane]
"""Number of a lane -> the lane, in the state where it is to go on."""

_FOR_PARENTS = {
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
}


class Serving:
    """Items of several lanes in turn, made by this process."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = list(lanes)
        self._turn = 0

    def next(self) -> Item:
        """The next item; empty once all lanes have come to their end.

        Raises:
            DataError: a row or a source cannot be used, or a worker process died.
        """
        for _ in self._lanes:
            lane = self._lanes[self._turn % len(self._lanes)]
            self._turn += 1
            if item := lane.next():
                return item
        return []

    def states(self) -> dict[int, LaneState]:
        """The state of each lane behind the items given out so far."""
        return {lane.number: lane.state() for lane in self._lanes}

    def close(self) -> None:
        """End the worker processes, if there are any; nothing is given out afterwards."""
        self._lanes.clear()


@dataclass(frozen=True)
class _Delivery:
    lane: int
    item: Item
    state: bytes
    """Pickled: only the last state of a lane is ever looked at."""


@dataclass(frozen=True)
class _Failure:
    words: str
    trace: str
    """Where it happened; empty for an error that was raised on purpose."""


class _Workers(Serving):
    def __init__(
        self, lanes: Sequence[Lane], make: MakeLane, num_workers: int, prefetch_factor: int
    ) -> None:
        self._states = {lane.number: pickle.dumps(lane.state()) for lane in lanes}
        # Forked workers start at once and share what is in memory; elsewhere all is pickled.
        methods = multiprocessing.get_all_start_methods()
        loader = DataLoader(
            _Shares([lane.number for lane in lanes], make),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            worker_init_fn=_begin_worker,
            multiprocessing_context="fork" if "fork" in methods else None,
            # The loader draws a seed that nobody needs; the run's own numbers must not move on.
            generator=torch.Generator(),
        )
        with _signals_kept():
            self._deliveries: Any = iter(loader)
        self._error: DataError | None = None

    def next(self) -> Item:
        while (delivery := self._next_delivery()) is not None:
            self._states[delivery.lane] = delivery.state
            if delivery.item:
                return delivery.item
        return []

    def _next_delivery(self) -> _Delivery | None:
        if self._error is not None:  # What a broken run gives out has no order any more.
            raise self._error
        try:
            delivery: _Delivery | _Failure | None = next(self._deliveries, None)
        except RuntimeError as error:
            self._error = DataError(
                f"a data worker process died ({error}). Often it ran out of memory: take fewer "
                "`num_workers`, or a smaller `prefetch_factor`."
            )
            raise self._error from error
        if isinstance(delivery, _Failure):
            self._error = DataError(delivery.words)
            if delivery.trace:
                self._error.add_note(delivery.trace)
            raise self._error
        return delivery

    def states(self) -> dict[int, LaneState]:
        return {lane: pickle.loads(state) for lane, state in self._states.items()}

    def close(self) -> None:
        # Deleted, the iterator ends its workers, but a traceback may still hold it.
        deliveries, self._deliveries = self._deliveries, iter(())
        self._error = self._error or DataError("the loader was closed.")
        if end := getattr(deliveries, "_shutdown_workers", None):
            end()


def serve(
    numbers: Sequence[int], make: MakeLane, num_workers: int, prefetch_factor: int
) -> Serving:
    """Serve lanes, beginning with the one that has given out least.

    `num_workers` is a divisor of the number of lanes; 0 = this process.
    """
    lanes = sorted((make(number) for number in numbers), key=lambda lane: (lane.items, lane.number))
    if num_workers == 0:
        return Serving(lanes)
    return _Workers(lanes, make, num_workers, prefetch_factor)


@contextmanager
def _signals_kept() -> Iterator[None]:
    # By the handler that the loader sets, the death of a worker is raised wherever the main thread
    # is, be it in the middle of a checkpoint. Without, it is found when the next item is asked for,
    # where all ranks can stop.
    known = hasattr(signal, "SIGCHLD") and current_thread() is main_thread()
    before = signal.getsignal(signal.SIGCHLD) if known else None
    try:
        yield
    finally:
        if known:
            signal.signal(signal.SIGCHLD, before)


class _Shares(IterableDataset[Any]):
    """What each worker process runs: every so many-th lane, in turn."""

    def __init__(self, numbers: Sequence[int], make: MakeLane) -> None:
        self._numbers = list(numbers)
        self._make = make

    def __iter__(self) -> Iterator[_Delivery | _Failure]:
        worker = get_worker_info()
        assert worker is not None
        try:
            numbers = self._numbers[worker.id :: worker.num_workers]
            yield from _deliver([self._make(number) for number in numbers])
        # Whatever goes wrong here is raised again where the run can stop on all ranks.
        except ControlLLMError as error:
            yield _Failure(str(error), "")
        except Exception as error:
            yield _Failure(f"a data worker process failed: {error!r}.", traceback.format_exc())


def _deliver(lanes: Sequence[Lane]) -> Iterator[_Delivery]:
    going_on = True
    while going_on:
        going_on = False
        for lane in lanes:
            item = lane.next()
            going_on = going_on or bool(item)
            # At its end a lane still takes its turn, so that the order stays the same.
            yield _Delivery(lane.number, item, pickle.dumps(lane.state()))


def _begin_worker(worker: int) -> None:
    """Processes are the parallelism here; threads in each would fight for the same cores."""
    parent = os.getppid()
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_PARENTS)
        Thread(target=_obey, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _end_with(parent: int) -> None:
    """End this worker when the run was killed: it may wait for a lock that nobody gives up."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _obey(parent: int) -> None:
    # Launchers and schedulers send such signals to all processes of a run, and the parent may need
    # batches to finish its step before it ends.
    while signal.sigwaitinfo(_FOR_PARENTS).si_pid != parent:
        pass
    os._exit(1)
