"""The tools that `debug` asks for, as one object with hooks for begin, steps and end."""

from contextlib import ExitStack
from pathlib import Path

from transformers import PreTrainedModel

from controlllm.common.distributed import Ranks
from controlllm.train.config.run_config import RunConfig
from controlllm.train.observe.debugging.anomaly import AnomalyHunt
from controlllm.train.observe.debugging.profiling import Profiler
from controlllm.train.observe.debugging.watchdog import Watchdog
from controlllm.train.observe.timing import PhaseClock

__all__ = ["Debugger"]


class Debugger:
    """The debugging tools of one process.

    Args:
        run: the run config.
        model: what trains, on its device.
        ranks: the processes of the run.
        clock: tells which phase of a step the process is in.

    Raises:
        ConfigError: what is asked for cannot be had here.
    """

    def __init__(
        self, run: RunConfig, model: PreTrainedModel, ranks: Ranks, clock: PhaseClock
    ) -> None:
        self._config = run.debug
        self._place = (ranks.rank, ranks.world_size)
        self._folder = Path(run.training.output_dir)
        self._clock = clock
        self._timeout = run.parallel.timeout
        self._steps = 0
        self._model = model
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
        patience = self._config.patience(self._place[1], self._timeout)
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
