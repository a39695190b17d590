"""FINCH: a learning rate that is low while the loss is high (arXiv 2605.20005).

Before each step, with the mean loss of its batch l and l' = 0.9 l' + 0.1 l (the first batch's l at
the start),

    rate = min(kappa / sqrt(l' + eps), most * kappa)

Formula, moving average of 0.9 and a cap on the rate are from a published summary of the paper; the
paper itself could not be read. That kappa is the configured rate is from a public program, which
starts l' at the mean loss of all training data; its rate is 2e-5 and the cap 5e-5. eps is ours. A
schedule multiplies it: set `lr_scheduler_type: constant` and no warm-up. By the native loop, of one
process; l' begins anew where a run goes on.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks.study import trial

from controlllm.train.loops.native import NativeLoop
from controlllm.train.step.losses import StepReport

__all__ = ["Trial", "factors"]

KEPT = 0.9


class Trial(trial.Trial):
    """`most`: the largest rate, as a multiple of the configured one."""

    def __init__(self, most: float = 2.5) -> None:
        self.most = most

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, the native loop sets the rate of a step once its loss is known."""
        plain, factor = NativeLoop.accumulate, factors(self.most)
        next(factor)

        def accumulate(loop: NativeLoop, batches: list[Any]) -> StepReport:
            report = plain(loop, batches)
            share = factor.send(report.losses["cross_entropy"].item())
            for group in loop.ready.optimizer.param_groups:
                group["lr"] *= share  # The schedule sets it anew after the step.
            return report

        with patch.object(NativeLoop, "accumulate", accumulate):
            yield


def factors(most: float) -> Generator[float, float, None]:
    """A generator that is sent losses and gives what the rate is multiplied by."""
    loss = yield 1.0
    mean = loss
    while True:
        mean = KEPT * mean + (1 - KEPT) * loss
        loss = yield min(1 / math.sqrt(mean + 1e-12), most)
