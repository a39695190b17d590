"""How the divergence reaches the gradient: as an explicit sum, or injected inside the block.

A loop that computes its own loss (TRL's chunked loss, fused kernels, a bare loop on the logits)
never sees a loss that `forward` would have added. So the default is to *inject*: the block's output
passes through an identity whose backward gives the penalty a gradient of one. Where somebody
collects the terms (our loops, or our own `forward` when it is given labels), they are summed
explicitly instead. Never both.

Shapes: B batch, T tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from controlllm.common.losses import IGNORE_INDEX, masked_sum, target_mask, token_mask

__all__ = ["AlignmentState", "DivergenceTerms"]


READ_INPUTS = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "labels",
    "shift_labels",
    "num_items_in_batch",
)
"""What the divergence reads of a forward pass."""


class InjectGradient(torch.autograd.Function):
    """Identity on `hidden`; backward also sends a gradient of one into `penalty`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, penalty: Tensor) -> Tensor:
        ctx.device = penalty.device
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.ones((), device=ctx.device)


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
        gradient_accumulation_steps: k, for foreign loops that divide their loss by k and do not
            pass `num_items_in_batch`.
        divergence_tokens: "all" or "target".
        latest: d per block of the last forward pass, detached, with its mask.
        alpha_sums: (sum, count) of alpha per block while it is being measured; None = it is not.
    """

    num_terms: int = 0
    enabled: bool = True
    inputs: Mapping[str, Any] | None = None
    last_inputs: Mapping[str, Any] | None = None
    terms: DivergenceTerms | None = None
    gradient_accumulation_steps: int = 1
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
            return hidden
        weighted, _ = masked_sum(d_BT * weight, mask)
        penalty = weighted / count.clamp_min(1) / self.num_terms * self.micro_batch_share()
        return InjectGradient.apply(hidden, penalty)

    def micro_batch_share(self) -> float | Tensor:
        """What this micro-batch counts in its accumulated batch.

        Trainers that normalise by the tokens of the whole batch pass `num_items_in_batch`: the
        share is then by target tokens, as for their cross-entropy. Others divide their loss by the
        number of micro-batches.
        """
        inputs = self.known_inputs() or {}
        items, labels = inputs.get("num_items_in_batch"), inputs.get("labels")
        if items is None:
            return 1.0 / self.gradient_accumulation_steps
        if labels is None:
            labels = inputs.get("shift_labels")
            targets = (labels != IGNORE_INDEX).sum() if labels is not None else items
        else:
            targets = target_mask(labels).sum()
        return targets / items

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
