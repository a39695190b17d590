"""What evaluations take of a run's time: a warning where that is much."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from controlllm.train.record.hooks import RunState

__all__ = ["EvaluationTime"]

log = logging.getLogger(__name__)

LARGEST_SHARE = 0.2
FEW_SECONDS = 30.0
"""Evaluations that took less in all are not worth a word."""


class EvaluationTime:
    """Adds up the time of evaluations between steps of this process, and warns once.

    What is measured before the first step is left out: it is done once.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._trained_before: float | None = None
        self._warned = False

    def begin(self, state: RunState) -> None:
        """Steps are made from now on."""
        self._trained_before = state.progress.seconds

    @contextmanager
    def counted(self, state: RunState) -> Iterator[None]:
        """The time of a block is that of an evaluation."""
        began = time.monotonic()
        yield
        if self._trained_before is None:
            return
        self.seconds += time.monotonic() - began
        trained = state.progress.seconds - self._trained_before
        share = self.seconds / max(self.seconds + trained, 1e-9)
        if self._warned or self.seconds < FEW_SECONDS or share <= LARGEST_SHARE:
            return
        self._warned = True
        if state.is_first:
            log.warning(
                "Evaluations take %.0f %% of the run (%.0f s of them, %.0f s of training): raise "
                "training.eval_steps or evaluation.generation.eval_steps, or lower "
                "data.max_eval_tokens, evaluation.generation.max_samples or max_seconds.",
                100 * share,
                self.seconds,
                trained,
            )
