"""The native loop: one process, on a CPU or one GPU.

One optimizer step is: take k micro-batches, count their targets, run forward and backward of each
micro-batch's *share* of the loss, clip, check, step. Sharding (FSDP2) belongs into `make_bench`,
which makes the model and the optimizer, and into `clip_gradients`; the loop would not change.
"""

import torch
from torch import nn

from controlllm.data import Batch
from controlllm.train.bench import Bench
from controlllm.train.keeper import RunKeeper, TrainResult
from controlllm.train.losses import StepReport

__all__ = ["NativeLoop", "clip_gradients"]


class NativeLoop:
    """Trains the model of a bench.

    Args:
        bench: the run's model, data, optimizer and the like.
        keeper: the run's books.
    """

    def __init__(self, bench: Bench, keeper: RunKeeper) -> None:
        self.bench = bench
        self.keeper = keeper
        self.max_grad_norm = bench.run.training.max_grad_norm

    def run(self) -> TrainResult:
        """Train until the run's end or a budget.

        Raises:
            TrainingError: if a loss or a gradient is not finite.
        """
        self.bench.model.train()
        while self.keeper.stopped is None:
            if batches := self.bench.next_batches():
                self.keeper.after_step(*self.step(batches))
            else:
                self.keeper.end_of_data()
        return self.keeper.finish()

    def step(self, batches: list[Batch]) -> tuple[StepReport, float]:
        """One optimizer step; what it measured, and the gradient norm before clipping."""
        bench = self.bench
        report = self.accumulate(batches)
        grad_norm = clip_gradients(bench.model, self.max_grad_norm)
        self.keeper.check_finite(report, grad_norm)
        bench.optimizer.step()
        bench.scheduler.step()
        bench.optimizer.zero_grad(set_to_none=True)
        return report, grad_norm

    def accumulate(self, batches: list[Batch]) -> StepReport:
        """Forward and backward of all micro-batches of a step."""
        bench = self.bench
        counts = bench.loss.count(batches)
        report = StepReport.of(counts)
        with bench.alphas.step():
            for batch in batches:
                with bench.autocast():
                    loss = bench.loss.micro_batch(bench.to_device(batch), counts, report)
                loss.backward()
        return report


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Clip the gradients of all trained parameters together; 0 measures without clipping.

    Returns:
        The norm before clipping.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    limit = max_norm if max_norm > 0 else float("inf")
    return float(torch.nn.utils.clip_grad_norm_(parameters, limit))
