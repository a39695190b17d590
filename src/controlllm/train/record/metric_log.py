"""The hook that logs: each record goes to the history and to every logger."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from controlllm.common.errors import TrainingError
from controlllm.evaluate.texts import Sample
from controlllm.expansion import ControlLLMForCausalLM, ExpansionConfig
from controlllm.train.observe import metrics as names
from controlllm.train.observe.instruments import Instruments
from controlllm.train.observe.progress import Window
from controlllm.train.record.hooks import Callback, RunState
from controlllm.train.record.loggers import LoggerContext, MetricLogger, make_loggers
from controlllm.train.step.schedules import learning_rate_factor

__all__ = ["MetricLog"]

log = logging.getLogger(__name__)

MOST_DIVERGENCE = 1.0
"""Times the cross-entropy: above it, most of the loss is no learning."""
MOST_GRADIENT = 100.0
"""Times the cross-entropy: gradients of sound runs stay at a few times it."""
SHARE = 0.1
"""Of the cross-entropy: what a suggested weight would have made of the divergence."""


class MetricLog(Callback):
    """Records what training measures of itself, every `logging.logging_steps`.

    Attributes:
        integrations: stands for loggers that are not of this package, if a back end has any.
    """

    def __init__(self, instruments: Instruments) -> None:
        self.instruments = instruments
        self.integrations: MetricLogger | None = None
        self._loggers: list[MetricLogger] = []
        self._warned = False

    def begin(self, state: RunState) -> None:
        """Open the loggers, on the first process."""
        if state.is_first:
            context = LoggerContext(state.run, state.total_steps, state.step)
            others = [] if self.integrations is None else [self.integrations]
            self._loggers = [*make_loggers(context), *others]

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
            if not self._warned and (warning := _swamped(state.step, means, state.model.expansion)):
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
        with self._writing(state):
            for logger in self._loggers:
                logger.log(metrics, state.step)

    def show(self, state: RunState, name: str, samples: Sequence[Sample]) -> None:
        """Give samples of texts to the loggers that show texts.

        Raises:
            TrainingError: they cannot be written.
        """
        with self._writing(state):
            for logger in self._loggers:
                if (show := getattr(logger, "log_texts", None)) is not None:
                    show(name, samples, state.step)

    @contextmanager
    def _writing(self, state: RunState) -> Iterator[None]:
        """Say what it means that a logger cannot write."""
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"the metrics of step {state.step} cannot be written to {state.folder}: {error}. "
                "Free some space, and run the same command again: it goes on from the newest "
                "checkpoint."
            ) from error

    def end(self, state: RunState) -> None:
        """Close the loggers."""
        try:
            for logger in self._loggers:
                logger.close()
        except OSError as error:
            log.warning("The last metrics could not be written to %s: %s", state.folder, error)


def _swamped(step: int, means: Mapping[str, float], expansion: ExpansionConfig) -> str | None:
    """The warning of a divergence, or its gradient, far above the cross-entropy, if it is so."""
    divergence = means.get(names.DIVERGENCE, 0.0)
    entropy, norm = means[names.CROSS_ENTROPY], means[names.GRAD_NORM]
    beyond = max(divergence - MOST_DIVERGENCE * entropy, norm - MOST_GRADIENT * entropy)
    if divergence <= 0 or beyond <= 0:
        return None
    ratio = divergence / max(entropy, 1e-12)
    weight, ways = expansion.divergence_weight, []
    if expansion.divergence != "nmse":
        ways.append(
            "expansion.divergence=nmse with expansion.divergence_weight=0.3 (relative to what each "
            "block does, as in the preset retain)"
        )
    if isinstance(weight, int | float):
        smaller = weight * min(SHARE / ratio, SHARE)
        ways.append(f"expansion.divergence_weight={smaller:.1g} (now {weight:g})")
    else:
        ways.append("a small number as expansion.divergence_weight, such as 0.01")
    return (
        f"step {step}: the divergence ({divergence:.3g}) is {ratio:.2g} times the cross-entropy "
        f"({entropy:.3g}), and the gradient norm before clipping is {norm:.3g}: the copies are "
        f"held to their twins more than they learn. Set {', or '.join(ways)}, or a lower "
        "training.learning_rate."
    )
