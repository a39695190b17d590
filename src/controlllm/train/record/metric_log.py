"""The hook that logs: each record goes to the history and to every logger."""

import logging
from collections.abc import Mapping

from controlllm.common.errors import TrainingError
from controlllm.expansion import ControlLLMForCausalLM
from controlllm.train.observe import metrics as names
from controlllm.train.observe.instruments import Instruments
from controlllm.train.observe.progress import Window
from controlllm.train.observe.swamped import swamped
from controlllm.train.record.hooks import Callback, RunState
from controlllm.train.record.loggers import LoggerContext, LoggerGroup, MetricLogger, make_loggers
from controlllm.train.step.schedules import learning_rate_factor

__all__ = ["MetricLog"]

log = logging.getLogger(__name__)


class MetricLog(Callback):
    """Records what training measures of itself, every `logging.logging_steps`.

    Args:
        instruments: time, FLOPs and memory.

    Attributes:
        integrations: stands for loggers that are not of this package, if a back end has any.
    """

    def __init__(self, instruments: Instruments) -> None:
        self.instruments = instruments
        self.integrations: MetricLogger | None = None
        self._loggers = LoggerGroup([])
        self._warned = False

    def begin(self, state: RunState) -> None:
        """Open the loggers, on the first process."""
        if state.is_first:
            context = LoggerContext(state.run, state.total_steps, state.step)
            self._loggers = make_loggers(context, self.integrations)

    def after_step(self, state: RunState) -> None:
        """Record the means of the steps since the last record, where it is time to."""
        if state.stopped or state.step % state.run.logging.logging_steps == 0:
            self.record(state)

    def record(self, state: RunState) -> None:
        """Record the means of the steps since the last record. Collective."""
        progress, training = state.progress, state.run.training
        means = progress.window.means()
        factor = learning_rate_factor(progress.step - 1, training, state.total_steps)
        means[names.LEARNING_RATE] = training.learning_rate * factor
        means[names.TOKENS] = progress.tokens
        means |= self.instruments.metrics(progress.window)
        if isinstance(state.model, ControlLLMForCausalLM):
            for layer, alpha in state.model.alphas().items():
                means[names.ALPHA_LAYER.format(layer)] = alpha
            if not self._warned and (warning := swamped(state.step, means, state.model.expansion)):
                self._warned = True
                if state.is_first:
                    log.warning(warning)
        progress.window = Window()
        self.write(state, means)

    def write(self, state: RunState, metrics: Mapping[str, float]) -> None:
        """Add a row to the history, and give it to the loggers.

        Raises:
            TrainingError: it cannot be written.
        """
        state.history.append({"step": state.step, **metrics})
        try:
            self._loggers.log(metrics, state.step)
        except OSError as error:
            raise TrainingError(
                f"the metrics of step {state.step} cannot be written to {state.folder}: {error}. "
                "Free some space, and run the same command again: it goes on from the newest "
                "checkpoint."
            ) from error

    def end(self, state: RunState) -> None:
        """Close the loggers."""
        try:
            self._loggers.close()
        except OSError as error:
            log.warning("The last metrics could not be written to %s: %s", state.folder, error)
