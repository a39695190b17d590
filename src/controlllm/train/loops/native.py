"""The native loop, in one process or in many.

One optimizer step is: take k micro-batches, count their targets on all processes, run forward and
backward of each micro-batch's *share* of the loss, clip, check, step. How processes share the model
is decided as the run is set up; the loop is the same.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from controlllm.common.tensors import whole
from controlllm.data import Batch
from controlllm.train.observe.timing import BACKWARD, COMMUNICATION, DATA, FORWARD, OPTIMIZER
from controlllm.train.record.recorder import Recorder, TrainResult
from controlllm.train.setup.stages import Ready
from controlllm.train.step.losses import StepReport

__all__ = ["NativeLoop", "clip_gradients"]


class NativeLoop:
    """The native loop."""

    def __init__(self, ready: Ready, recorder: Recorder) -> None:
        self.ready, self.recorder = ready, recorder
        self.clock = recorder.instruments.clock
        self.max_grad_norm = ready.run.training.max_grad_norm

    def run(self) -> TrainResult:
        """Train until the run's end or a budget.

        Raises:
            TrainingError: if a loss or a gradient is not finite.
        """
        self.recorder.start(self.ready)
        self.ready.model.train()
        while self.recorder.stopped is None:
            with self.clock.phase(DATA):
                batches = self.ready.next_batches()
            if batches:
                self.recorder.after_step(*self.step(batches))
            else:
                self.recorder.end_of_data()
        return self.recorder.finish()

    def step(self, batches: list[Batch]) -> tuple[StepReport, float]:
        """One optimizer step; what it measured, and the gradient norm before clipping."""
        ready = self.ready
        report = self.accumulate(batches)
        self.recorder.debugger.after_backward()
        with self.clock.phase(OPTIMIZER):
            grad_norm = clip_gradients(ready.model, self.max_grad_norm)
            self.recorder.check_finite(report, grad_norm)
            ready.optimizer.step()
            ready.scheduler.step()
            ready.optimizer.zero_grad(set_to_none=True)
        self.recorder.instruments.count(batches)
        return report, grad_norm

    def accumulate(self, batches: list[Batch]) -> StepReport:
        """Forward and backward of all micro-batches of a step; what all processes measured."""
        ready, world, clock = self.ready, self.ready.world, self.clock
        with clock.phase(COMMUNICATION):
            counts = ready.loss.count(batches).over(world)
        report = StepReport.of(counts)
        with ready.alphas.step():
            for number, batch in enumerate(batches, start=1):
                world.synchronize_gradients(ready.model, on=number == len(batches))
                with clock.phase(FORWARD), ready.autocast():
                    loss = ready.loss.micro_batch(ready.to_device(batch), counts, report)
                # FSDP takes the mean of the processes' gradients, but shares add up.
                with clock.phase(BACKWARD):
                    (loss * world.data_size).backward()
        with clock.phase(COMMUNICATION):
            return report.over(world)


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Clip the gradients of all trained parameters together; 0 measures without clipping.

    Returns:
        The norm before clipping.
    """
    by_mesh = defaultdict[Any, list[nn.Parameter]](list)
    for parameter in model.parameters():
        if parameter.grad is not None:
            # Norms of parts that lie on other meshes cannot be added up before they are whole.
            by_mesh[getattr(parameter, "device_mesh", None)].append(parameter)
    norms = [
        whole(torch.nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]))
        for group in by_mesh.values()
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]
    if max_norm > 0:
        for group in by_mesh.values():
            torch.nn.utils.clip_grads_with_norm_(group, max_norm, norm)
    return norm.item()
