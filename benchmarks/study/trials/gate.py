"""A gate that is to know old text from new: alpha_t = dial * sigmoid(w·norm(x_t) + b) per block.

x_t is what the block reads, its norm has a root mean square of 1. The loss of the new text opens
the gate; the mean alpha on rehearsed tokens, times `push`, stands in the loss beside it and shuts
it there. Such an arm has `interpolator: study_gate`, begins nearly shut, and its dial, which
multiplies the gate, turns the ends too, which have none.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final
from unittest.mock import patch

from benchmarks.study import trial
from torch import Tensor
from torch.nn.functional import rms_norm

from controlllm.common.losses import IGNORE_INDEX, masked_sum, target_mask
from controlllm.data import REHEARSAL
from controlllm.expansion.method.interpolators import INTERPOLATORS, TokenGate
from controlllm.train.step.losses import Counts, StepLoss, StepReport

__all__ = ["Gate", "PushedLoss", "Trial"]


class Trial(trial.Trial):
    """`push`: weight of the mean alpha on rehearsed tokens."""

    def __init__(self, push: float = 0.3) -> None:
        self.push = push

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, there is the interpolator, and the loss of a step pushes."""
        known = patch.dict(INTERPOLATORS._things, {"study_gate": Gate})
        with known, trial.step_loss(PushedLoss, push=self.push):
            yield


@final
class Gate(TokenGate):
    """Lerp by the gate; it keeps what it said last, with its graph, for the push."""

    opened: Tensor

    def gate(self, x: Tensor, pretrained: Tensor, expanded: Tensor) -> Tensor:
        """Alpha of each token (B, T, 1)."""
        self.opened = self.score(rms_norm(x, x.shape[-1:], eps=1e-6)).sigmoid()
        return self.opened


class PushedLoss(StepLoss):
    """A step's loss with the push, which is reported as `gate_push`."""

    push: float

    def micro_batch(
        self, batch: Mapping[str, Any], counts: Counts, report: StepReport | None = None
    ) -> Tensor:
        """The micro-batch's share, and the push on its rehearsed tokens."""
        loss = super().micro_batch(batch, counts, report)
        model: Any = self.model
        rehearsed = batch["labels"].masked_fill(batch["origin"] != REHEARSAL, IGNORE_INDEX)
        mask_BT = target_mask(rehearsed)
        gates = [block.interpolator.opened for block in model.blocks.values()]
        opened = sum(masked_sum(gate.squeeze(-1), mask_BT)[0] for gate in gates) / len(gates)
        pushed: Tensor = self.push * model.expansion.dial * opened / max(counts.rehearsed, 1)
        if report is not None:
            report.losses["gate_push"] = report.losses.get("gate_push", 0.0) + pushed.detach()
        return loss + pushed
