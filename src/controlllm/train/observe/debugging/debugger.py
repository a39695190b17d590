"""The tools that `debug` asks for, as one object with hooks for begin, steps and end."""

import os
import warnings
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from controlllm.common.distributed import Ranks
from controlllm.train.config.debug_config import DebugConfig
from controlllm.train.config.run_config import RunConfig
from controlllm.train.observe.debugging.anomaly import AnomalyHunt
from controlllm.train.observe.debugging.profiling import Profiler
from controlllm.train.observe.debugging.watchdog import Watchdog
from controlllm.train.observe.timing import PhaseClock

__all__ = ["Debugger", "prepare_recorder"]

RECORDER = "flight_recorder"
"""Folder of torch's record of the last collectives, written where one times out."""


def prepare_recorder(config: DebugConfig, output_dir: str) -> None:
    """Set the flight recorder's variables, which torch reads as it makes a group of processes.

    Variables that are set already are left as they are.
    """
    if not config.flight_recorder:
        return
    late = None
    if not torch.cuda.is_available():
        late = (
            "records collectives of NCCL only, and torch sees no GPU here: nothing will be "
            "recorded. debug.watchdog_seconds works everywhere."
        )
    elif dist.is_available() and dist.is_initialized():
        late = (
            "comes too late: the group of processes was made before the run began. Set "
            "TORCH_FR_BUFFER_SIZE before that."
        )
    if late is not None:
        warnings.warn(f"debug.flight_recorder=true {late}", stacklevel=3)
        return
    folder = Path(output_dir).absolute() / RECORDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in recorder_variables(folder).items():
        os.environ.setdefault(name, value)


def recorder_variables(folder: Path) -> dict[str, str]:
    """The variables by name. Source: torch/csrc/distributed/c10d/FlightRecorder.hpp."""
    return {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": str(folder / "rank-"),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
    }


class Debugger:
    """The debugging tools of one process; the clock tells which phase of a step it is in.

    Raises:
        ConfigError: what is asked for cannot be had here.
    """

    def __init__(
        self, run: RunConfig, model: PreTrainedModel, ranks: Ranks, clock: PhaseClock
    ) -> None:
        self._run, self._model, self._clock = run, model, clock
        self._place = (ranks.rank, ranks.world_size)
        self._folder = Path(run.training.output_dir)
        self._steps = 0
        self._profiler = Profiler(run.debug, clock, model.device, self._folder, self._place)
        self._hunt = AnomalyHunt(model, ranks.rank) if run.debug.anomaly else None
        self._open = ExitStack()

    def begin(self, step: int) -> None:
        """Training begins or goes on after so many steps."""
        self._steps = step
        self._open.callback(self._profiler.close)
        self._profiler.begin(step)
        if self._hunt is not None:
            self._open.callback(self._hunt.close)
            self._hunt.begin(step)
        patience = self._run.debug.patience(self._place[1], self._run.parallel.timeout)
        if patience is not None:
            beats = self._model.register_forward_pre_hook(lambda *_: self._clock.beat())
            self._open.callback(beats.remove)
            watchdog = Watchdog(
                self._clock, lambda: self._steps, self._folder, self._place, patience
            )
            self._open.callback(watchdog.close)

    def after_step(self, step: int) -> None:
        """So many steps are done."""
        self._steps = step
        self._profiler.after_step(step)
        if self._hunt is not None:
            self._hunt.after_step(step)

    def after_backward(self) -> None:
        """Check the gradients of a step, before clipping spreads a bad one to all.

        Raises:
            TrainingError: naming the first weight with a bad gradient.
        """
        if self._hunt is not None:
            self._hunt.check_weights()

    def close(self) -> None:
        """End all that was begun; also after an error."""
        self._open.close()
