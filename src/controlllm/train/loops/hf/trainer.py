"""`transformers.Trainer` on the same run config.

The Trainer gives the loop and the device handling; everything that decides about results is shared
with the native loop: the batches, the loss with its global counts, the optimizer with its groups,
the schedule, clipping, metric names, evaluation and what a checkpoint means. For the same seed both
loops give the same losses. The Trainer's own logging, saving and resuming stay switched off.

Under `fsdp`, `hsdp` and `ddp` the model comes sharded, by the same code as for the native loop;
accelerate leaves it as it is. Under `zero2` and `zero3` accelerate makes it an engine of DeepSpeed.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback

from controlllm.checkpoint import capture_rng, restore_rng
from controlllm.common.errors import ConfigError
from controlllm.train.config.parallel_config import ZERO
from controlllm.train.loops.hf.arguments import training_arguments
from controlllm.train.loops.hf.zero import ZeroStorage
from controlllm.train.loops.native import clip_gradients
from controlllm.train.observe.timing import BACKWARD, COMMUNICATION, DATA, FORWARD, OPTIMIZER
from controlllm.train.record.keeper import RunKeeper, TrainResult
from controlllm.train.setup.bench import Bench
from controlllm.train.step.losses import Counts, StepReport
from controlllm.train.step.optim import make_scheduler

__all__ = ["ControlLLMTrainer", "train_with_hf"]


def train_with_hf(bench: Bench, keeper: RunKeeper) -> TrainResult:
    """Train the model of a bench by `transformers.Trainer`.

    Raises:
        ConfigError: if DeepSpeed refuses its settings.
        TrainingError: if a loss or a gradient is not finite.
    """
    try:
        ControlLLMTrainer(bench, keeper).train()
    except _EndOfData:
        keeper.end_of_data()
    except _NothingToDo:
        pass
    return keeper.finish()


class ControlLLMTrainer(Trainer):
    """A Trainer whose batches, loss and books are ours.

    Args:
        bench: the run's model, data, optimizer and the like.
        keeper: the run's books.
    """

    def __init__(self, bench: Bench, keeper: RunKeeper) -> None:
        self.bench = bench
        self.keeper = keeper
        self.counts = Counts()
        self.report = StepReport()
        self.uses_zero = bench.run.parallel.strategy in ZERO
        self._random_states = capture_rng()
        super().__init__(
            model=bench.model,
            args=training_arguments(bench),
            optimizers=(bench.optimizer, bench.scheduler),
            callbacks=[_Books(self)],
        )
        self.remove_callback(PrinterCallback)
        # The loss is a share of the accumulated batch's; it must not be divided again.
        self.model_accepts_loss_kwargs = True

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The bench's; DeepSpeed's set-up asks for it anew."""
        self.optimizer = self.bench.optimizer
        return self.optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """The bench's, likewise."""
        self.lr_scheduler = self.bench.scheduler
        return self.lr_scheduler

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, Any]:
        """Make the model an engine where DeepSpeed shares it; then resume and measure.

        Raises:
            ConfigError: DeepSpeed itself refuses its settings, by whichever of its kinds of error.
        """
        if self.uses_zero:
            try:
                prepared: tuple[nn.Module, Any] = super()._prepare_for_training(*args, **kwargs)
            except (AssertionError, ValueError, NotImplementedError) as error:
                raise ConfigError(
                    f"DeepSpeed does not take its settings ({error}); see parallel.deepspeed, or "
                    "take parallel.strategy=fsdp."
                ) from error
            self._adopt(prepared[0])
        else:
            prepared = self.bench.model, self.get_train_dataloader()
        if self.bench.run.logging.integrations:
            self.keeper.integrations = _Integrations(self)
        restore_rng(self._random_states)  # The Trainer has seeded everything anew.
        self.keeper.start()
        if self.keeper.stopped is not None:
            raise _NothingToDo
        return prepared

    def _adopt(self, engine: Any) -> None:
        """Let the books know what DeepSpeed has put in the place of model and optimizer."""
        bench = self.bench
        bench.loss.caller = engine
        bench.check_model()
        bench.storage = ZeroStorage(engine, bench.storage)
        if bench.storage.optimizer is not bench.optimizer:  # It has one of its own for offload.
            bench.optimizer = bench.storage.optimizer
            bench.scheduler = make_scheduler(bench.optimizer, bench.run.training, bench.total_steps)
            self.lr_scheduler = bench.scheduler

    def get_train_dataloader(self) -> Any:
        """The bench's batches; no worker reads ahead, so the loader's state is exact."""
        return _Batches(self.bench)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step; counts them and draws the step's alpha."""
        instruments = self.keeper.instruments
        with instruments.clock.phase(DATA):
            batches = self.bench.next_batches()
        if not batches:
            raise _EndOfData
        instruments.count(batches)
        with instruments.clock.phase(COMMUNICATION):
            self.counts = self.bench.loss.count(batches).over(self.bench.world)
        self.report = StepReport.of(self.counts)
        self.bench.alphas.draw()
        return batches, self.counts.targets

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """One micro-batch's share of the step's loss."""
        with self.keeper.instruments.clock.phase(FORWARD), self.bench.autocast():
            loss = self.bench.loss.micro_batch(inputs, self.counts, self.report)
        if self.uses_zero and self.accelerator.sync_gradients:
            # The engine's backward pass ends with the optimizer's step.
            self.keeper.check_finite(self.report, 0.0)
        # Gradients are averaged over processes, but shares add up.
        return loss * self.bench.world.data_size

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one micro-batch; what is not the former counts as the latter."""
        world, last = self.bench.world, self.accelerator.sync_gradients
        world.synchronize_gradients(self.bench.model, on=last)
        with self.keeper.instruments.clock.phase(BACKWARD):
            return super().training_step(*args, **kwargs)

    def grad_norm(self) -> float:
        """The gradient norm before clipping; clips, unless the engine has clipped already."""
        if self.uses_zero:
            engine: Any = self.model_wrapped
            return float(engine.get_global_grad_norm())
        return clip_gradients(self.bench.model, self.bench.run.training.max_grad_norm)


class _NothingToDo(Exception):
    """The run that was resumed is at its end already."""


class _EndOfData(Exception):
    """The sources have left the mix; the Trainer knows no other way to stop between steps."""


class _Books(TrainerCallback):
    """Tells the keeper of each step, and the Trainer when to stop."""

    def __init__(self, trainer: ControlLLMTrainer) -> None:
        self.trainer = trainer
        self.grad_norm = 0.0
        self.optimizing = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.global_step = self.trainer.keeper.progress.step
        self.trainer.keeper.start_clock()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, clock = self.trainer, self.trainer.keeper.instruments.clock
        with clock.phase(COMMUNICATION):
            trainer.report = trainer.report.over(trainer.bench.world)
        trainer.keeper.debugger.after_backward()
        self.optimizing.enter_context(clock.phase(OPTIMIZER))
        self.grad_norm = trainer.grad_norm()
        trainer.keeper.check_finite(trainer.report, self.grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.optimizing.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.bench.alphas.release()
        self.trainer.keeper.after_step(self.trainer.report, self.grad_norm)
        control.should_training_stop = self.trainer.keeper.stopped is not None


class _Integrations:
    """Hands our metrics to the loggers that the Trainer has set up (`logging.report_to`)."""

    def __init__(self, trainer: ControlLLMTrainer) -> None:
        self.trainer = trainer

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """As if the Trainer had logged them."""
        trainer = self.trainer
        trainer.state.global_step = step
        handler = trainer.callback_handler
        trainer.control = handler.on_log(
            trainer.args, trainer.state, trainer.control, dict(metrics)
        )

    def close(self) -> None:
        """The Trainer tells them when training ends."""


class _Batches:
    """The loader as the Trainer wants it: an iterable without a length."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def __iter__(self) -> Iterator[Any]:
        return iter(self.bench.loader)
