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
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from controlllm.checkpoint import capture_rng, restore_rng
from controlllm.common.errors import ConfigError
from controlllm.train.loops.hf.zero import with_engine
from controlllm.train.loops.native import clip_gradients
from controlllm.train.observe.timing import BACKWARD, COMMUNICATION, DATA, FORWARD, OPTIMIZER
from controlllm.train.record.recorder import Recorder, TrainResult
from controlllm.train.setup.stages import Ready
from controlllm.train.step.losses import Counts, StepReport

__all__ = ["ControlLLMTrainer", "train_with_hf"]


def train_with_hf(ready: Ready, recorder: Recorder) -> TrainResult:
    """Train by `transformers.Trainer`.

    Raises:
        ConfigError: if DeepSpeed refuses its settings.
        TrainingError: if a loss or a gradient is not finite.
    """
    try:
        ControlLLMTrainer(ready, recorder).train()
    except _EndOfData:
        recorder.end_of_data()
    except _NothingToDo:
        pass
    return recorder.finish()


def _arguments(ready: Ready) -> TrainingArguments:
    """The Trainer's own logging, evaluation, saving and clipping are off."""
    run, training = ready.run, ready.run.training
    sharing: dict[str, Any] = {"max_grad_norm": 0.0}
    if run.parallel.way.by_deepspeed:
        sharing = {
            "deepspeed": ready.engine_settings,
            "accelerator_config": {"use_configured_state": True},
            # The engine clips, and computes in its own precision.
            "max_grad_norm": training.max_grad_norm,
            "bf16": training.autocast_dtype is torch.bfloat16,
        }
    return TrainingArguments(
        output_dir=training.output_dir,
        max_steps=ready.total_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=ready.micro_batches,
        seed=training.seed,
        use_cpu=ready.device.type == "cpu",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=run.logging.integrations,
        run_name=run.logging.run_name,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        **sharing,
    )


class ControlLLMTrainer(Trainer):
    """A Trainer whose batches, loss and records are ours."""

    def __init__(self, ready: Ready, recorder: Recorder) -> None:
        self.ready, self.recorder = ready, recorder
        self.counts, self.report = Counts(), StepReport()
        self.uses_zero = ready.run.parallel.way.by_deepspeed
        self._random_states = capture_rng()
        super().__init__(
            model=ready.model,
            args=_arguments(ready),
            optimizers=(ready.optimizer, ready.scheduler),
            callbacks=[_Steps(self)],
        )
        self.remove_callback(PrinterCallback)
        # The loss is a share of the accumulated batch's; it must not be divided again.
        self.model_accepts_loss_kwargs = True

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Give the run's optimizer, which DeepSpeed's set-up asks for again."""
        self.optimizer = self.ready.optimizer
        return self.optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Give the run's schedule, likewise."""
        self.lr_scheduler = self.ready.scheduler
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
            self.ready = with_engine(self.ready, prepared[0])
            self.lr_scheduler = self.ready.scheduler
        else:
            prepared = self.ready.model, self.get_train_dataloader()
        if self.ready.run.logging.integrations:
            self.recorder.metrics.integrations = _Integrations(self)
        restore_rng(self._random_states)  # The Trainer has seeded everything anew.
        self.recorder.start(self.ready)
        if self.recorder.stopped is not None:
            raise _NothingToDo
        return prepared

    def get_train_dataloader(self) -> Any:
        """The run's batches; no worker reads ahead, so the loader's state is exact."""
        return self.ready.loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step; counts them and draws the step's alpha."""
        instruments = self.recorder.instruments
        with instruments.clock.phase(DATA):
            batches = self.ready.next_batches()
        if not batches:
            raise _EndOfData
        instruments.count(batches)
        with instruments.clock.phase(COMMUNICATION):
            self.counts = self.ready.loss.count(batches).over(self.ready.world)
        self.report = StepReport.of(self.counts)
        self.ready.alphas.draw()
        return batches, self.counts.targets

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """One micro-batch's share of the step's loss."""
        with self.recorder.instruments.clock.phase(FORWARD), self.ready.autocast():
            loss = self.ready.loss.micro_batch(inputs, self.counts, self.report)
        if self.uses_zero and self.accelerator.sync_gradients:
            # The engine's backward pass ends with the optimizer's step.
            self.recorder.check_finite(self.report, 0.0)
        # Gradients are averaged over processes, but shares add up.
        return loss * self.ready.world.data_size

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one micro-batch; what is not the former counts as the latter."""
        world, last = self.ready.world, self.accelerator.sync_gradients
        world.synchronize_gradients(self.ready.model, on=last)
        with self.recorder.instruments.clock.phase(BACKWARD):
            return super().training_step(*args, **kwargs)

    def grad_norm(self) -> float:
        """The gradient norm before clipping; clips, unless the engine has clipped already."""
        if self.uses_zero:
            engine: Any = self.model_wrapped
            return float(engine.get_global_grad_norm())
        return clip_gradients(self.ready.model, self.ready.run.training.max_grad_norm)


class _NothingToDo(Exception):
    """The run that was resumed is at its end already."""


class _EndOfData(Exception):
    """The sources have left the mix; the Trainer knows no other way to stop between steps."""


class _Steps(TrainerCallback):
    """Tells the recorder of each step, and the Trainer when to stop."""

    def __init__(self, trainer: ControlLLMTrainer) -> None:
        self.trainer = trainer
        self.grad_norm = 0.0
        self.optimizing = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.global_step = self.trainer.recorder.state.step
        self.trainer.recorder.start_clock()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, clock = self.trainer, self.trainer.recorder.instruments.clock
        with clock.phase(COMMUNICATION):
            trainer.report = trainer.report.over(trainer.ready.world)
        trainer.recorder.debugger.after_backward()
        self.optimizing.enter_context(clock.phase(OPTIMIZER))
        self.grad_norm = trainer.grad_norm()
        trainer.recorder.check_finite(trainer.report, self.grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.optimizing.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.ready.alphas.release()
        self.trainer.recorder.after_step(self.trainer.report, self.grad_norm)
        control.should_training_stop = self.trainer.recorder.stopped is not None


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
