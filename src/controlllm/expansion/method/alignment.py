"""How the divergence reaches the gradient: by the loss where the loss holds it, else injected.

A loop that computes its own loss (TRL's chunked loss, fused kernels, a bare loop on the logits)
never sees a loss that `forward` would have added. So every block *injects*: its output passes
through an identity whose backward sends the penalty its gradient. Where `forward` is given labels,
its loss holds the penalty as well, and *claims* it: backward reaches the loss before the blocks,
and what was claimed is not injected. Where somebody collects the terms (our own loops), nothing is
injected at all. So it counts once, whichever loop trains.

Shapes: B batch, T tokens.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from controlllm.common.errors import ModelError
from controlllm.common.losses import IGNORE_INDEX, masked_sum, target_mask, token_mask

__all__ = ["AlignmentState", "ClaimGradient", "DivergenceTerms"]

READ_INPUTS = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "labels",
    "shift_labels",
    "num_items_in_batch",
)
"""What the divergence reads of a forward pass."""


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
        ctx.device, ctx.share, ctx.claim = penalty.device, share, claim
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
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


class DivergenceTerms:
    """The divergences of one forward pass: a (B, T) tensor per block, with its graph."""

    def __init__(self) -> None:
        self.values: dict[int, Tensor] = {}
        self.weights: dict[int, float | Tensor] = {}

    def add(self, layer: int, d_BT: Tensor, weight: float | Tensor) -> None:
        """Keep one block's divergence and its weight (a number, or alpha per token)."""
        self.values[layer] = d_BT
        self.weights[layer] = weight

    def total(self, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum over the masked tokens of the mean over blocks, and the number of tokens.

        Divide by the count of the whole accumulated batch. Without any block that has a divergence
        the sum is 0.
        """
        sums = [masked_sum(d * self.weights[layer], mask_BT)[0] for layer, d in self.values.items()]
        total = sum((s.to(mask_BT.device) for s in sums), torch.zeros((), device=mask_BT.device))
        return total / max(len(sums), 1), mask_BT.sum()

    def per_block(self, mask_BT: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Unweighted (sum, count) of each block, detached, for logging."""
        return {layer: masked_sum(d.detach(), mask_BT) for layer, d in self.values.items()}


@dataclass
class AlignmentState:
    """What all expanded parts of one model share while a forward pass runs. Nothing of it is saved.

    Attributes:
        num_terms: how many blocks have a divergence (the penalty is their mean).
        enabled: False computes the base model only.
        inputs: the keyword arguments of the forward pass that runs now, where known.
        last_inputs: those of the last forward pass with gradients that the divergence reads.
        terms: where blocks put their divergence; None = they inject its gradient.
        claim: of the forward pass that runs now, where its loss will hold the divergence.
        gradient_accumulation_steps: k, for foreign loops that divide their loss by k and do not
            pass `num_items_in_batch`; None = as accelerate knows it, else 1.
        divergence_tokens: "all" or "target".
        latest: d per block of the last forward pass, detached, with its mask.
        alpha_sums: (sum, count) of alpha per block while it is being measured; None = it is not.
    """

    num_terms: int = 0
    enabled: bool = True
    inputs: Mapping[str, Any] | None = None
    last_inputs: Mapping[str, Any] | None = None
    terms: DivergenceTerms | None = None
    claim: Claim | None = None
    gradient_accumulation_steps: int | None = None
    divergence_tokens: str = "all"
    latest: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    alpha_sums: dict[int, tuple[Tensor, Tensor]] | None = None

    @property
    def wanted(self) -> bool:
        """Whether a divergence computed now could reach a gradient or a reader."""
        return self.terms is not None or torch.is_grad_enabled()

    @contextmanager
    def reading(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Let the blocks read the inputs of the forward pass inside."""
        before = self.inputs
        self.begin(inputs)
        try:
            yield
        finally:
            self.inputs = before

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Take the inputs of the forward pass that begins."""
        self.inputs = inputs
        if torch.is_grad_enabled():  # never holds on to a cache of generation
            self.last_inputs = {key: inputs.get(key) for key in READ_INPUTS}

    def known_inputs(self) -> Mapping[str, Any] | None:
        """Inputs of the forward pass that runs now.

        When backward runs a checkpointed block again, the forward pass is over, and the last one's
        are meant.
        """
        if self.inputs is None and torch._C._current_graph_task_id() != -1:
            return self.last_inputs
        return self.inputs

    def mask(self, like_BT: Tensor) -> Tensor:
        """Which positions count (B, T bool); all of them where the inputs are not known."""
        inputs = self.known_inputs()
        if inputs is not None:
            mask = token_mask(inputs, self.divergence_tokens)
            if mask.shape == like_BT.shape:
                return mask.to(like_BT.device)
        return torch.ones_like(like_BT, dtype=torch.bool)

    def align(self, layer: int, d_BT: Tensor, weight: float | Tensor, hidden: Tensor) -> Tensor:
        """Let one block's divergence count: collect it, or inject its gradient into `hidden`."""
        mask = self.mask(d_BT)
        total, count = masked_sum(d_BT.detach(), mask)
        self.latest[layer] = (total, count)
        if self.terms is not None:
            self.terms.add(layer, d_BT, weight)
            if self.claim is None:
                return hidden
        weighted, _ = masked_sum(d_BT * weight, mask)
        penalty = weighted / count.clamp_min(1) / self.num_terms
        return InjectGradient.apply(hidden, penalty, self._injected_share(), self.claim)

    def _injected_share(self) -> float | Tensor | None:
        """What this micro-batch counts where its loss is not ours; None = cannot be known."""
        share = self.share_of_targets()
        if share is not None:
            return share
        steps = self.gradient_accumulation_steps or _accelerate_steps()
        return None if steps is None else 1.0 / steps

    def share_of_targets(self) -> Tensor | None:
        """What this micro-batch counts in its accumulated batch, by target tokens.

        Trainers that normalise their cross-entropy by the targets of the whole batch pass
        `num_items_in_batch`; None where the loop does not, or the targets are not known.
        """
        inputs = self.known_inputs() or {}
        items = inputs.get("num_items_in_batch")
        labels, shifted = inputs.get("labels"), inputs.get("shift_labels")
        if labels is not None:
            targets = target_mask(labels).sum()
        elif isinstance(shifted, Tensor):
            targets = (shifted != IGNORE_INDEX).sum()
        else:
            return None
        return None if items is None else targets / items

    @contextmanager
    def collecting(self) -> Iterator[DivergenceTerms]:
        """Inside, blocks collect their divergence instead of injecting its gradient."""
        before, self.terms = self.terms, DivergenceTerms()
        try:
            yield self.terms
        finally:
            self.terms = before

    def penalty(self, terms: DivergenceTerms, inputs: Mapping[str, Any]) -> Tensor:
        """What the loss of a forward pass adds to its cross-entropy.

        Args:
            terms: what the blocks collected in it.
            inputs: its keyword arguments.
        """
        total, count = terms.total(token_mask(inputs, self.divergence_tokens))
        share = self.share_of_targets()
        return total / count.clamp_min(1) * (1.0 if share is None else share)

    def means(self) -> dict[int, float]:
        """Mean divergence per layer in the last training forward pass, detached."""
        return {layer: (s / n.clamp_min(1)).item() for layer, (s, n) in self.latest.items()}

    @contextmanager
    def claiming(self) -> Iterator[Claim]:
        """Inside runs a forward pass whose loss will hold the divergence."""
        self.claim = Claim()
        try:
            yield self.claim
        finally:
            self.claim = None

    def observe_alpha(self, layer: int, alpha: Tensor, like_BT: Tensor) -> None:
        """Add this forward's alpha of one block to the measurement that runs, if one does."""
        if self.alpha_sums is None:
            return
        mask = self.mask(like_BT)
        total, count = masked_sum(alpha.detach().float().squeeze(-1).expand_as(like_BT), mask)
        before = self.alpha_sums.get(layer)
        self.alpha_sums[layer] = (
            (total, count) if before is None else (before[0] + total, before[1] + count)
        )


def _accelerate_steps() -> int | None:
    """Micro-batches per step as accelerate knows it; None where it accumulates an unknown number.

    `transformers.Trainer` counts by itself and only tells accelerate when gradients are complete.
    """
    module = sys.modules.get("accelerate.state")
    if module is None or not module.GradientState._shared_state:
        return 1
    state = module.GradientState()
    steps: int = state.num_steps
    return steps if steps > 1 or state.sync_gradients else None
