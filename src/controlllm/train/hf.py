"""`transformers.Trainer` on the same run config.

The Trainer gives the loop and the device handling; everything that decides about results is shared
with the native loop: the batches, the loss with its global counts, the optimizer with its groups,
the schedule, clipping, metric names, evaluation and what a checkpoint means. For the same seed both
loops give the same losses. The Trainer's own logging, saving and resuming stay switched off.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from controlllm.checkpoint import capture_rng, restore_rng
from controlllm.train.bench import Bench
from controlllm.train.keeper import RunKeeper, TrainResult
from controlllm.train.losses import Counts, StepReport
from controlllm.train.native import clip_gradients
from controlllm.train.timing import BACKWARD, DATA, FORWARD, OPTIMIZER

__all__ = ["ControlLLMTrainer", "train_with_hf"]


def train_with_hf(bench: Bench, keeper: RunKeeper) -> TrainResult:
    """Train the model of a bench by `transformers.Trainer`.

    Raises:
        TrainingError: if a loss or a gradient is not finite.
    """
    if keeper.stopped is None:
        random_states = capture_rng()
        trainer = ControlLLMTrainer(bench, keeper)
        restore_rng(random_states)  # The Trainer seeds everything anew, on a resume too.
        try:
            trainer.train()
        except _EndOfData:
            keeper.end_of_data()
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
        super().__init__(
            model=bench.model,
            args=_arguments(bench),
            optimizers=(bench.optimizer, bench.scheduler),
            callbacks=[_Books(self)],
        )
        self.remove_callback(PrinterCallback)
        # The loss is a share of the accumulated batch's; it must not be divided again.
        self.model_accepts_loss_kwargs = True

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
        self.counts = self.bench.loss.count(batches)
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
            return self.bench.loss.micro_batch(inputs, self.counts, self.report)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one micro-batch; what is not the former counts as the latter."""
        with self.keeper.instruments.clock.phase(BACKWARD):
            return super().training_step(*args, **kwargs)


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
        trainer = self.trainer
        limit = trainer.bench.run.training.max_grad_norm
        trainer.keeper.debugger.after_backward()
        self.optimizing.enter_context(trainer.keeper.instruments.clock.phase(OPTIMIZER))
        self.grad_norm = clip_gradients(trainer.bench.model, limit)
        trainer.keeper.check_finite(trainer.report, self.grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.optimizing.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.bench.alphas.release()
        self.trainer.keeper.after_step(self.trainer.report, self.grad_norm)
        control.should_training_stop = self.trainer.keeper.stopped is not None


class _Batches:
    """The loader as the Trainer wants it: an iterable without a length."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def __iter__(self) -> Iterator[Any]:
        return iter(self.bench.loader)


def _arguments(bench: Bench) -> TrainingArguments:
    """The Trainer's own logging, evaluation, saving and clipping are off: we keep the books."""
    training = bench.run.training
    return TrainingArguments(
        output_dir=training.output_dir,
        max_steps=bench.total_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=bench.micro_batches,
        max_grad_norm=0.0,
        seed=training.seed,
        use_cpu=bench.device.type == "cpu",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
    )
