"""Where the time of a step goes: one clock that is always in one phase.

On a CPU a phase lasts as long as the host spends in it. On a GPU the ends of phases are events in
the stream of the computation, read once they have passed: nothing waits for the device, and a phase
that keeps it idle (waiting for data) lasts as long as it does.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "BACKWARD",
    "CHECKPOINT",
    "COMMUNICATION",
    "DATA",
    "EVALUATION",
    "FORWARD",
    "OPTIMIZER",
    "STEP_PHASES",
    "PhaseClock",
    "Standing",
]

DATA, FORWARD, BACKWARD = "data", "forward", "backward"
OPTIMIZER, COMMUNICATION = "optimizer", "communication"
STEP_PHASES = (DATA, FORWARD, BACKWARD, OPTIMIZER, COMMUNICATION)
"""The phases of a training step."""
EVALUATION, CHECKPOINT = "evaluation", "checkpoint"


@dataclass(frozen=True)
class Standing:
    """Where a process is; all processes of a run pass through the same phases."""

    phase: str | None  # its name; None between phases
    count: int  # how many phases have begun or ended
    since: float  # when the last of them did, or a beat was (`time.monotonic`)


class PhaseClock:
    """Adds up the time spent in each phase; a phase inside another one is not counted twice.

    Args:
        device: where the model computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.standing = Standing(None, 0, time.monotonic())
        """May be read by other threads."""
        self.annotate = False
        """Whether phases appear in a profiler's trace."""
        self._on_gpu = device.type == "cuda"
        self._last = self._now()
        self._spans: deque[tuple[str, Any, Any]] = deque()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a block as a phase; afterwards the phase before goes on."""
        before = self.standing.phase
        self._enter(name)
        try:
            if self.annotate:
                with torch.profiler.record_function(f"controlllm/{name}"):
                    yield
            else:
                yield
        finally:
            self._enter(before)

    def beat(self) -> None:
        """Note that the current phase makes progress."""
        standing = self.standing
        self.standing = Standing(standing.phase, standing.count, time.monotonic())

    def take(self, wait: bool = False) -> dict[str, float]:
        """Seconds spent in each phase since the last call.

        Args:
            wait: wait for a GPU to end what it was given; else what has not ended is left for the
                next call.
        """
        seconds: dict[str, float] = {}
        while self._spans:
            name, begin, end = self._spans[0]
            if self._on_gpu and not end.query():
                if not wait:
                    break
                end.synchronize()
            self._spans.popleft()
            lasted = begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
            seconds[name] = seconds.get(name, 0.0) + lasted
        return seconds

    def _enter(self, name: str | None) -> None:
        now, standing = self._now(), self.standing
        if standing.phase is not None:
            self._spans.append((standing.phase, self._last, now))
        self._last = now
        self.standing = Standing(name, standing.count + 1, time.monotonic())

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
