"""The book-keeping of a run, the same under every back end.

A back end makes optimizer steps and reports each; the keeper logs, measures forgetting, saves,
resumes, and says when to stop:

    keeper.start()                      resume, or measure the untrained model
    while keeper.stopped is None:
        ... one optimizer step ...
        keeper.after_step(report, grad_norm)
    keeper.finish() -> TrainResult
"""

import logging
import math
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint import TrainingState, capture_rng, mark_best, restore_rng
from controlllm.checkpoint.mirror.upload import Uploader
from controlllm.checkpoint.training.state import checkpoint_step, load_values
from controlllm.checkpoint.training.tensors import describe_model
from controlllm.checkpoint.training.writer import CheckpointWriter
from controlllm.common.errors import TrainingError
from controlllm.expansion import ControlLLMForCausalLM, ExpansionConfig
from controlllm.train.observe import metrics as names
from controlllm.train.observe.debugging import Debugger
from controlllm.train.observe.instruments import Instruments
from controlllm.train.observe.progress import Progress, Window
from controlllm.train.observe.retention import Best, Measurement, better
from controlllm.train.observe.swamped import swamped
from controlllm.train.observe.timing import CHECKPOINT, COMMUNICATION, EVALUATION
from controlllm.train.record.folder import remote_run
from controlllm.train.record.loggers import (
    LoggerContext,
    LoggerGroup,
    MetricLogger,
    make_loggers,
)
from controlllm.train.record.signals import StopSignals
from controlllm.train.record.uploads import Uploads
from controlllm.train.setup.bench import Bench, seed_everything
from controlllm.train.step.losses import StepReport
from controlllm.train.step.schedules import learning_rate_factor

__all__ = ["RunKeeper", "TrainResult"]


log = logging.getLogger(__name__)

_SECONDS_TO_COPY = 5.0


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        output_dir: the run's folder.
        history: one row per record: `step` and its metrics.
        best: the best learner within the budget; None without learn sets, or if none kept to it.
        stopped_because: max_steps, max_tokens, max_seconds, max_forgetting, end_of_data, or
            preempted (a signal asked for it; the same run goes on from there).
        model: the model as it was when training stopped (the best one is on disk).
        tokenizer: its tokenizer.
    """

    output_dir: Path
    history: list[dict[str, Any]]
    best: Best | None
    stopped_because: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class RunKeeper:
    """Keeps the books of one run.

    Args:
        bench: the run's model, data, optimizer and the like.
        checkpoint: where to resume from, or None.
        signals: by which the run is asked to stop, if anybody listens to them.
    """

    def __init__(
        self, bench: Bench, checkpoint: Path | None, signals: StopSignals | None = None
    ) -> None:
        self.bench = bench
        self.signals = signals
        self.training = bench.run.training
        self.folder = Path(self.training.output_dir)
        self.progress = Progress()
        self.saved: Path | None = checkpoint
        self.stopped: str | None = None
        self.loggers = LoggerGroup([])
        self.integrations: MetricLogger | None = None
        self.instruments = Instruments(bench.run, bench.loss, bench.world)
        self.debugger = Debugger(bench.run, bench.model, bench.world.ranks, self.instruments.clock)
        limit = self.training.save_total_limit
        self.writer = CheckpointWriter(self.folder, limit, bench.world.ranks)
        remote = remote_run(self.training) if bench.world.is_first else None
        self.uploader = None if remote is None else Uploader(remote, limit)
        self.uploads = Uploads(self.training.remote_dir is not None, bench.world)
        self._clock = time.monotonic()
        self._checkpoint = checkpoint
        self._told = False

    def start(self) -> None:
        """Resume, or measure the untrained model; call it last before the first step."""
        if self._checkpoint is not None:
            self._resume(self._checkpoint)
            log.info("Resuming %s", self._checkpoint)
        self.debugger.begin(self.progress.step)
        if self.bench.world.is_first:
            context = LoggerContext(self.bench.run, self.bench.total_steps, self.progress.step)
            self.loggers = make_loggers(context, self.integrations)
        self._upload()  # What an earlier process could not copy; and it shows now that it works.
        self.uploads.wait()
        if self.progress.step == 0 and self.bench.meter.enabled:
            self._measure()
        self.stopped = self._reason_to_stop()
        if self.signals is not None:
            self.signals.begin(tell=self.bench.world.is_first)
        if self.stopped is None:
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
            kept = (
                f"the last good checkpoint is {self.saved}" if self.saved else "nothing was saved"
            )
            raise TrainingError(
                f"step {self.progress.step + 1}: {', '.join(bad)}; the weights were not changed "
                f"and {kept}. Lower training.learning_rate, or look at the rows of this step."
            )

    def after_step(self, report: StepReport, grad_norm: float) -> None:
        """Count an optimizer step, and log, measure, save and stop where it is time to."""
        progress, training = self.progress, self.training
        # What decides when to stop or to save must be the same for all processes.
        with self.instruments.clock.phase(COMMUNICATION):
            seconds, *flags = self.bench.world.max([time.monotonic() - self._clock, *self._flags()])
        may_finish, uploading, upload_failed, asked_to_stop = map(bool, flags)
        if upload_failed:
            self.uploads.wait()  # Which raises the error on all processes.
        if may_finish and not uploading:
            self._saved(self.writer.finish())
        progress.step += 1
        progress.tokens += report.tokens
        progress.seconds += seconds
        progress.window.add(report, grad_norm, seconds)
        self.instruments.take(progress.window)
        last = self._reason_to_stop() is not None
        if last or progress.step % self.bench.run.logging.logging_steps == 0:
            self._log_training()
        improved = False
        if self.bench.meter.enabled and (last or progress.step % training.eval_steps == 0):
            improved = self._improves(self._measure())
        self.stopped = self._reason_to_stop() or ("preempted" if asked_to_stop else None)
        if improved or self.stopped or progress.step % training.save_steps == 0:
            self._save()
        self.debugger.after_step(progress.step)
        self.start_clock()

    def end_of_data(self) -> None:
        """No batch is left: close the books of the last step, unless they are closed already."""
        self.stopped = "end_of_data"
        if self.progress.window.steps:
            self._log_training()
        if self.bench.meter.enabled and self.progress.step % self.training.eval_steps:
            self._improves(self._measure())
        self._save()

    def finish(self) -> TrainResult:
        """Wait for the last checkpoint, and say what came of the run."""
        assert self.stopped is not None
        self.uploads.wait()
        self._saved(self.writer.finish())
        self.uploads.wait()
        for line in self.bench.loader.report():
            log.info("Drawn from source %s", line)
        return TrainResult(
            output_dir=self.folder,
            history=self.progress.history,
            best=self.progress.best,
            stopped_because=self.stopped,
            model=self.bench.model,
            tokenizer=self.bench.tokenizer,
        )

    def close(self) -> None:
        """Close the loggers; also after an error."""
        self.debugger.close()
        # Others must not wait for a copy after an error; what is missing, the next start copies.
        self.uploads.close(_SECONDS_TO_COPY if self.bench.world.size > 1 else None)
        try:
            self.loggers.close()
        except OSError as error:
            log.warning("The last metrics could not be written to %s: %s", self.folder, error)

    def _flags(self) -> list[bool]:
        """What this process knows that all must act on together."""
        return [
            self.writer.may_finish(),
            self.uploads.running,
            self.uploads.failed,
            self.signals is not None and self.signals.received,
        ]

    def _reason_to_stop(self) -> str | None:
        progress, training = self.progress, self.training
        if progress.step >= self.bench.total_steps:
            return "max_steps"
        if _reached(progress.tokens, training.max_tokens):
            return "max_tokens"
        if _reached(progress.seconds, training.max_seconds):
            return "max_seconds"
        forgetting, budget = progress.forgetting, training.max_forgetting
        if training.stop_on_budget and forgetting is not None and budget is not None:
            return "max_forgetting" if forgetting > budget else None
        return None

    def _log_training(self) -> None:
        means = self.progress.window.means()
        factor = learning_rate_factor(self.progress.step - 1, self.training, self.bench.total_steps)
        means[names.LEARNING_RATE] = self.training.learning_rate * factor
        means[names.TOKENS] = self.progress.tokens
        means |= self.instruments.metrics(self.progress.window)
        if isinstance(self.bench.model, ControlLLMForCausalLM):
            for layer, alpha in self.bench.model.alphas().items():
                means[names.ALPHA_LAYER.format(layer)] = alpha
            self._tell_of_swamping(means, self.bench.model.expansion)
        self.progress.window = Window()
        self._log(means)

    def _tell_of_swamping(self, means: dict[str, float], expansion: ExpansionConfig) -> None:
        """Once in a run."""
        warning = None if self._told else swamped(self.progress.step, means, expansion)
        if warning is not None and self.bench.world.is_first:
            log.warning(warning)
        self._told = self._told or warning is not None

    def _measure(self) -> Measurement:
        """Evaluate and log."""
        with self.instruments.clock.phase(EVALUATION), self.bench.autocast():
            measurement = self.bench.meter.measure()
        self.bench.world.reshard(self.bench.model)
        self.progress.forgetting = measurement.forgetting
        self._log(measurement.metrics)
        return measurement

    def _improves(self, measurement: Measurement) -> bool:
        """Whether this step is the best one so far; remembers it if so."""
        progress = self.progress
        best = better(progress.step, measurement, progress.best, self.training.max_forgetting)
        progress.best = best or progress.best
        return best is not None

    def _log(self, metrics: dict[str, float]) -> None:
        self.progress.history.append({"step": self.progress.step, **metrics})
        try:
            self.loggers.log(metrics, self.progress.step)
        except OSError as error:
            raise TrainingError(
                f"the metrics of step {self.progress.step} cannot be written to {self.folder}: "
                f"{error}. Free some space, and run the same command again: it goes on from the "
                "newest checkpoint."
            ) from error

    def _save(self) -> None:
        bench = self.bench
        tensors, moments, rest = bench.storage.read()
        state = TrainingState(
            step=self.progress.step,
            tensors=tensors,
            model=describe_model(bench.model),
            optimizer=rest,
            optimizer_tensors=moments,
            scheduler=bench.scheduler.state_dict(),
            loader=bench.loader.state_dict(),
            rng=bench.world.ranks.gather(capture_rng()),
            history=self.progress.history,
            extra={
                "progress": self.progress.to_dict(),
                "alphas": bench.alphas.state_dict(),
                "rows": bench.rows_of_a_step,
            },
        )
        with self.instruments.clock.phase(CHECKPOINT):
            self.uploads.wait()  # What it copies may be the one that gives way to this one.
            whole = self.writer.save(state)
        self._saved(whole)

    def _saved(self, checkpoint: Path | None) -> None:
        """A checkpoint has become whole."""
        if checkpoint is None:
            return
        self.saved = checkpoint
        best = self.progress.best
        if best is not None and best.step == checkpoint_step(checkpoint):
            self._mark_best()
        self._upload()

    def _upload(self) -> None:
        """Copy the newest checkpoint, or what there is before the first one, elsewhere."""
        if self.uploader is None:
            return
        saved = self.saved
        if saved is not None and saved.parent.resolve() == self.folder.resolve():
            self.uploads.start(partial(self.uploader.send, saved))
        else:
            self.uploads.start(partial(self.uploader.send_files, self.folder))

    def _mark_best(self) -> None:
        if not self.bench.world.is_first:
            return
        best = self.progress.best
        assert best is not None
        values = {"learn_loss": best.learn_loss}
        if best.forgetting is not None:
            values["forgetting"] = best.forgetting
        mark_best(self.folder, best.step, values)

    def _resume(self, checkpoint: Path) -> None:
        bench, ranks = self.bench, self.bench.world.ranks
        state = load_values(checkpoint)  # `open_run_folder` has verified every file of it.
        bench.storage.fill(checkpoint, state.optimizer)
        bench.scheduler.load_state_dict(state.scheduler)
        bench.loader.load_state_dict(state.loader)
        bench.alphas.load_state_dict(state.extra["alphas"])
        self.progress = Progress.from_dict(state.extra["progress"], state.history)
        rows = state.extra.get("rows", bench.rows_of_a_step)
        if rows != bench.rows_of_a_step and bench.world.is_first:
            warnings.warn(
                f"A step had {rows} rows on the processes that wrote {checkpoint}, and has "
                f"{bench.rows_of_a_step} on these; training.total_train_batch_size={rows} (set "
                "from the start) keeps it.",
                stacklevel=2,
            )
        best = self.progress.best
        own = checkpoint.parent.resolve() == self.folder.resolve()
        if best is not None and best.step == state.step and own:
            self._mark_best()  # A kill between saving and marking would have lost the mark.
        if len(state.rng) == ranks.world_size:
            restore_rng(state.rng[ranks.rank])
        else:
            seed_everything(self.training.seed + state.step + ranks.rank)


def _reached(value: float, limit: float | None) -> bool:
    return limit is not None and value >= limit
