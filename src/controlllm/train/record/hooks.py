"""Callbacks: what else happens while a run trains, in both back ends.

    class Memory(Callback):
        def after_step(self, state):
            if state.step % 100 == 0:
                state.log({"mine/gigabytes": torch.cuda.max_memory_allocated() / 1e9})

    train(run, callbacks=[Memory()])

How to write one: docs/extending/callback.md.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.evaluate.texts import Sample
from controlllm.train.config.run_config import RunConfig
from controlllm.train.observe.progress import Progress
from controlllm.train.observe.retention import Best
from controlllm.train.parallel import World
from controlllm.train.setup.stages import Ready

__all__ = ["Callback", "RunState"]


class RunState:
    """A run as it is now.

    Args:
        ready: what trains.
        write: where metrics go.
        show: where samples of texts go.

    Attributes:
        progress: counters and history.
        stopped: why the run has stopped, or None while it goes on.
        saved: the newest whole checkpoint, if there is one.
    """

    def __init__(
        self,
        ready: Ready,
        write: Callable[[Mapping[str, float]], None],
        show: Callable[[str, Sequence[Sample]], None],
    ) -> None:
        self.ready = ready
        self.progress = Progress()
        self.stopped: str | None = None
        self.saved: Path | None = None
        self.asked: str | None = None
        self._write, self._show = write, show

    @property
    def run(self) -> RunConfig:
        """The run config, resolved."""
        return self.ready.run

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.run.training.output_dir)

    @property
    def model(self) -> PreTrainedModel:
        """What trains; of several processes each may hold its parts only."""
        return self.ready.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.ready.tokenizer

    @property
    def world(self) -> World:
        """The processes of the run."""
        return self.ready.world

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.world.is_first

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.ready.total_steps

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    @property
    def tokens(self) -> int:
        """Tokens trained on, padding left out."""
        return self.progress.tokens

    @property
    def forgetting(self) -> float | None:
        """The largest forgetting of a retain set at the last evaluation, in nats per token."""
        return max(self.progress.forgetting.values(), default=None)

    @property
    def best(self) -> Best | None:
        """The best step within the budget of forgetting so far."""
        return self.progress.best

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row for each record: `step` and its metrics."""
        return self.progress.history

    def log(self, metrics: Mapping[str, float]) -> None:
        """Give metrics of this step to the history and to every logger; the same on all processes.

        Args:
            metrics: numbers by name, such as `mine/accuracy`.
        """
        self._write(metrics)

    def log_texts(self, name: str, samples: Sequence[Sample]) -> None:
        """Give samples of texts of this step to every logger that shows texts.

        Args:
            name: how they are called, such as `generation/gsm8k`.
            samples: rows, the same on all processes.
        """
        self._show(name, samples)

    def stop(self, reason: str = "callback") -> None:
        """End the run after this step, with a checkpoint; one process that asks is enough.

        Args:
            reason: becomes `TrainResult.stopped_because` where this process is the first.
        """
        self.asked = reason


class Callback:
    """Something that happens while a run trains; a subclass defines the methods that it needs.

    Each process of a run calls each method at the same step, so that a method may be collective.
    The model is in training mode: put its mode back if you change it, and leave its weights alone.
    An error ends the run.
    """

    def begin(self, state: RunState) -> None:
        """Training begins, or goes on after `state.step` steps."""

    def after_step(self, state: RunState) -> None:
        """An optimizer step is done, logged and measured where it is time to, and not saved yet."""

    def evaluate(self, state: RunState, metrics: Mapping[str, float]) -> None:
        """The held-out sets were measured.

        Args:
            state: the run.
            metrics: `learn/NAME/loss`, `retain/NAME/forgetting`, ... (docs/observing.md).
        """

    def save(self, state: RunState, folder: Path) -> None:
        """A checkpoint is whole.

        Args:
            state: the run; it may be some steps further than the checkpoint.
            folder: the checkpoint.
        """

    def end(self, state: RunState) -> None:
        """Training has ended; also by an error, if it had begun."""
