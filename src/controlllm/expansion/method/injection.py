"""How the divergence reaches the gradient: by the loss where the loss holds it, else injected.

A loop that computes its own loss (TRL's chunked loss, fused kernels, a bare loop on the logits)
never sees a loss that `forward` would have added. So every block *injects*: its output passes
through an identity whose backward sends the penalty its gradient. Where `forward` is given labels,
its loss holds the penalty as well, and *claims* it: backward reaches the loss before the blocks,
and what was claimed is not injected. Where somebody collects the terms (our own loops), nothing is
injected at all. So it counts once, whichever loop trains.
"""

from typing import Any

import torch
from torch import Tensor

from controlllm.common.errors import ModelError

__all__ = ["Claim", "ClaimGradient", "InjectGradient"]


class Claim:
    """Whether backward has found the divergence of one forward pass in its loss."""

    taken = False


class ClaimGradient(torch.autograd.Function):
    """Identity on a penalty that is part of a loss; backward takes the claim."""

    @staticmethod
    def forward(ctx: Any, penalty: Tensor, claim: Claim) -> Tensor:
        """The penalty as it is."""
        ctx.claim = claim
        return penalty.view_as(penalty)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The loss holds the penalty: the blocks need not inject it."""
        ctx.claim.taken = True
        return grad, None


class InjectGradient(torch.autograd.Function):
    """Identity on `hidden`; backward also sends `share` into `penalty`, unless it was claimed."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, penalty: Tensor, share: float | Tensor | None, claim: Claim | None
    ) -> Tensor:
        """The hidden state as it is."""
        ctx.device, ctx.share, ctx.claim = penalty.device, share, claim
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """The penalty gets its share, unless a loss has claimed it."""
        if ctx.claim is not None and ctx.claim.taken:
            return grad, None, None, None
        if ctx.share is None:
            raise ModelError(
                "This loop accumulates gradients over several micro-batches and does not tell the "
                "model over how many, so the divergence would count too often. Add "
                "controlllm.integrations.ControlLLMCallback() to the trainer's callbacks, or set "
                "model.gradient_accumulation_steps."
            )
        share = torch.as_tensor(ctx.share, dtype=torch.float32, device=ctx.device)
        return grad, share, None, None
