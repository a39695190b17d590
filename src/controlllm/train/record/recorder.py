"""The records of a run, the same under every back end.

A back end makes optimizer steps and reports each; hooks log, measure, save and mirror:

    recorder.start(ready)           resume, or measure the untrained model
    while recorder.stopped is None:
        ... one optimizer step ...
        recorder.after_step(report, grad_norm)
    recorder.finish() -> TrainResult

The order after each step: log, evaluate, the user's callbacks, decide whether to stop, save.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.errors import TrainingError
from controlllm.evaluate import Certificate
from controlllm.expansion.files.records import BASE
from controlllm.train.config.training_config import TrainingConfig
from controlllm.train.observe.debugging import Debugger
from controlllm.train.observe.instruments import Instruments
from controlllm.train.observe.progress import Progress
from controlllm.train.observe.retention import Best, over_budget
from controlllm.train.observe.timing import COMMUNICATION
from controlllm.train.record.benchmarks import Benchmarks
from controlllm.train.record.checkpoints import Checkpoints
from controlllm.train.record.evaluation import Evaluation
from controlllm.train.record.evaluation_time import EvaluationTime
from controlllm.train.record.generation import Generation
from controlllm.train.record.hooks import Callback, RunState
from controlllm.train.record.metric_log import MetricLog
from controlllm.train.record.signals import StopSignals
from controlllm.train.setup.own_text import final_certificates
from controlllm.train.setup.stages import Ready
from controlllm.train.step.losses import StepReport

__all__ = ["Recorder", "TrainResult", "stop_reason"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run.

    Attributes:
        output_dir: the run's folder.
        history: one row per record: `step` and its metrics.
        best: the best learner within the budget; None without learn sets, or if none kept to it.
        stopped_because: max_steps, max_tokens, max_seconds, max_forgetting (of which stages, where
            there are several), end_of_data, preempted (a signal asked for it; the same run goes on
            from there), or what a callback gave as its reason.
        certificates: by the name of a set of own text, how far the model moved from its base on
            what that wrote; none where the last step was not measured, or there is no own text.
        model: the model as it was when training stopped (the best one is on disk).
        tokenizer: its tokenizer.
    """

    output_dir: Path
    history: list[dict[str, Any]]
    best: Best | None
    stopped_because: str
    certificates: dict[str, Certificate]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def stop_reason(progress: Progress, training: TrainingConfig, total_steps: int) -> str | None:
    """Which end or budget of a run is reached, if any."""
    over = over_budget(progress.forgetting, training.max_forgetting)
    broken = "max_forgetting"
    if over and progress.forgetting.keys() - {BASE}:
        broken += f" of {' and '.join(over)}"
    reached = {
        "max_steps": progress.step >= total_steps,
        "max_tokens": training.max_tokens is not None and progress.tokens >= training.max_tokens,
        "max_seconds": training.max_seconds is not None
        and progress.seconds >= training.max_seconds,
        broken: training.stop_on_budget and bool(over),
    }
    return next((reason for reason, is_reached in reached.items() if is_reached), None)


class Recorder:
    """Keeps the records of one run, which resumes from the checkpoint, if there is one.

    The user's callbacks are called in their order.
    """

    def __init__(
        self,
        ready: Ready,
        checkpoint: Path | None,
        signals: StopSignals | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        run, world = ready.run, ready.world
        self.signals, self.callbacks = signals, callbacks
        self.instruments = Instruments(run, ready.loss, world)
        clock = self.instruments.clock
        self.debugger = Debugger(run, ready.model, world.ranks, clock)
        self.metrics = MetricLog(self.instruments)
        self.evaluation_time = EvaluationTime()
        self.evaluation = Evaluation(clock, self.evaluation_time, self._tell_metrics)
        self.generation = Generation(clock, self.evaluation_time)
        self.benchmarks = Benchmarks(clock, self.evaluation_time)
        self.checkpoints = Checkpoints(run, world, clock, self._tell_saved)
        self.state = RunState(
            ready,
            lambda metrics: self.metrics.write(self.state, metrics),
            lambda name, samples: self.metrics.show(self.state, name, samples),
        )
        self._checkpoint = checkpoint
        self._begun: list[Callback] = []
        self._clock = time.monotonic()

    @property
    def stopped(self) -> str | None:
        """Why the run has stopped, or None while it goes on."""
        return self.state.stopped

    def start(self, ready: Ready) -> None:
        """Resume, or measure the untrained model; call it last before the first step.

        The back end may have put something in place of parts of `ready`.
        """
        state = self.state
        state.ready = ready
        if self._checkpoint is not None:
            self.checkpoints.resume(state, self._checkpoint)
        self.debugger.begin(state.step)
        measuring = (self.evaluation, self.generation, self.benchmarks)
        for hook in (self.metrics, self.checkpoints, *self.callbacks, *measuring):
            self._begun.append(hook)
            hook.begin(state)
        self.evaluation_time.begin(state)
        state.stopped = self._reason() or self._asked()
        if self.signals is not None:
            self.signals.begin(tell=state.is_first)
        if state.stopped is None:
            log.info("Reading the first batch; the first step follows")
        self.start_clock()

    def start_clock(self) -> None:
        """The time of the next step counts from now; for back ends that set up something first."""
        self._clock = time.monotonic()

    def check_finite(self, report: StepReport, grad_norm: float) -> None:
        """Refuse a step that would poison the weights; call it before `optimizer.step()`.

        Raises:
            TrainingError: naming the step and the checkpoint that stays good.
        """
        values = {name: loss.item() for name, loss in report.losses.items()}
        values["gradient norm"] = grad_norm
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            saved = self.state.saved
            kept = f"the last good checkpoint is {saved}" if saved else "nothing was saved"
            raise TrainingError(
                f"step {self.state.step + 1}: {', '.join(bad)}; the weights were not changed and "
                f"{kept}. Lower training.learning_rate, or look at the rows of this step."
            )

    def after_step(self, report: StepReport, grad_norm: float) -> None:
        """Count an optimizer step, and log, measure, save and stop where it is time to."""
        state, progress, world = self.state, self.state.progress, self.state.world
        asked = self.signals is not None and self.signals.received
        # What decides when to stop or to save must be the same for all processes.
        with self.instruments.clock.phase(COMMUNICATION):
            seconds, asked_to_stop, *flags = world.max(
                [time.monotonic() - self._clock, asked, *self.checkpoints.flags()]
            )
        self.checkpoints.act(state, *map(bool, flags))
        progress.step += 1
        progress.tokens += report.tokens
        progress.seconds += seconds
        progress.window.add(report, grad_norm, seconds)
        self.instruments.take(progress.window)
        state.stopped = self._reason()  # The last step is logged and measured, whatever it is.
        measuring = (self.evaluation, self.generation, self.benchmarks)
        for hook in (self.metrics, *measuring, *self.callbacks):
            hook.after_step(state)
        reason = self._asked()
        if reason is not None and state.stopped is None:
            state.stopped = reason
            self._record_rest()
        state.stopped = self._reason() or reason or ("preempted" if asked_to_stop else None)
        due = progress.step % state.run.training.save_steps == 0
        if due or state.stopped or self.evaluation.improved:
            self.checkpoints.save(state)
        self.debugger.after_step(progress.step)
        self.start_clock()

    def end_of_data(self) -> None:
        """No batch is left: record the last steps, unless they are recorded already."""
        self.state.stopped = "end_of_data"
        self._record_rest()
        self.checkpoints.save(self.state)

    def finish(self) -> TrainResult:
        """Wait for the last checkpoint, and say what came of the run."""
        state = self.state
        assert state.stopped is not None
        self.checkpoints.finish(state)
        for line in state.ready.loader.report():
            log.info("Drawn from source %s", line)
        step, measured = self.evaluation.last or (None, None)
        found: dict[str, Certificate] = {}
        if measured is not None and step == state.step and state.stopped != "preempted":
            found = final_certificates(state.ready, measured.retain)
        return TrainResult(
            state.folder,
            state.history,
            state.best,
            state.stopped,
            found,
            state.model,
            state.tokenizer,
        )

    def close(self) -> None:
        """End all that has begun; also after an error."""
        with ExitStack() as stack:  # All of them, even if one fails.
            for hook in self._begun:
                stack.callback(hook.end, self.state)
            stack.callback(self.debugger.close)

    def _record_rest(self) -> None:
        """Log and measure the last step, as far as that has not been done."""
        state = self.state
        if state.progress.window.steps:
            self.metrics.record(state)
        if state.step % state.run.training.eval_steps:
            self.evaluation.after_step(state)
        self.generation.after_step(state)
        self.benchmarks.after_step(state)

    def _reason(self) -> str | None:
        return stop_reason(self.state.progress, self.state.run.training, self.state.total_steps)

    def _asked(self) -> str | None:
        """Why a callback wants the run to end; one process that asks is enough. Collective."""
        if not self.callbacks:
            return None
        reasons = self.state.world.ranks.gather(self.state.asked)
        return next((reason for reason in reasons if reason is not None), None)

    def _tell_metrics(self, metrics: Mapping[str, float]) -> None:
        for callback in self.callbacks:
            callback.evaluate(self.state, metrics)

    def _tell_saved(self, folder: Path) -> None:
        for callback in self.callbacks:
            callback.save(self.state, folder)
