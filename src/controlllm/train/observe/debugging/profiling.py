"""Traces of chosen steps, and snapshots of GPU memory.

A trace is opened by https://ui.perfetto.dev or chrome://tracing; phases of a step stand in it as
`controlllm/forward` and the like. A snapshot is opened by https://pytorch.org/memory_viz.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from controlllm.common.errors import ConfigError
from controlllm.train.config.debug_config import DebugConfig
from controlllm.train.observe.timing import PhaseClock

__all__ = ["FOLDER", "Profiler"]

FOLDER = "profile"
_MOST_ALLOCATIONS = 100_000

log = logging.getLogger(__name__)


class Profiler:
    """Profiles this process, if it is to, with the phases of its clock in the trace.

    `place` is the rank of this process, and how many there are.

    Raises:
        ConfigError: a rank that there is not, or a memory snapshot of a CPU.
    """

    def __init__(
        self,
        config: DebugConfig,
        clock: PhaseClock,
        device: torch.device,
        output_dir: Path,
        place: tuple[int, int],
    ) -> None:
        self.rank, world_size = place
        wanted = config.profile_steps is not None or config.memory_snapshot
        if wanted and max(config.profile_ranks) >= world_size:
            raise ConfigError(
                f"debug.profile_ranks={config.profile_ranks!r}, but the run has {world_size} "
                f"processes: 0 to {world_size - 1}."
            )
        if config.memory_snapshot and device.type != "cuda":
            raise ConfigError(
                "debug.memory_snapshot=true needs a GPU: torch records no allocations of a CPU. "
                "Leave it out; debug.profile_steps shows what operations allocate."
            )
        mine = self.rank in config.profile_ranks
        self.steps = config.profile_steps if mine else None
        self.folder = output_dir / FOLDER
        self._snapshot = config.memory_snapshot and mine
        self._clock = clock
        self._on_gpu = device.type == "cuda"
        self._running: Any = None

    def begin(self, step: int) -> None:
        """Training begins or goes on after so many steps."""
        if self._snapshot:
            torch.cuda.memory._record_memory_history(max_entries=_MOST_ALLOCATIONS)
        self.after_step(step)

    def after_step(self, step: int) -> None:
        """So many steps are done."""
        if self.steps is None:
            return
        first, last = self.steps
        if self._running is not None and step >= last:
            self._stop(f"steps-{first}-{last}")
            self._write_snapshot()
        elif self._running is None and first - 1 <= step < last:
            self._start()

    def close(self) -> None:
        """Write what is left to write; also after an error."""
        if self._running is not None and self.steps is not None:
            self._stop(f"steps-{self.steps[0]}-end")
        self._write_snapshot()

    def _start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(ProfilerActivity.CUDA)
        self._running = profile(activities=activities, record_shapes=True, profile_memory=True)
        self._running.start()
        self._clock.annotate = True

    def _stop(self, name: str) -> None:
        running, self._running = self._running, None
        self._clock.annotate = False
        running.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank-{self.rank}-{name}.json"
        running.export_chrome_trace(str(path))
        log.info("Profile of rank %d written to %s", self.rank, path)

    def _write_snapshot(self) -> None:
        if not self._snapshot:
            return
        self._snapshot = False
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank-{self.rank}-memory.pickle"
        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)
        log.info("Memory snapshot of rank %d written to %s", self.rank, path)
