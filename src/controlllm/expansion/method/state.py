"""What all expanded parts of one model share while a forward pass runs.

Shapes: B batch, T tokens.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from controlllm.common.losses import IGNORE_INDEX, masked_sum, target_mask, token_mask
from controlllm.expansion.method.injection import Claim, InjectGradient
from controlllm.expansion.method.terms import DivergenceTerms

__all__ = ["AlignmentState"]

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

    @property
    def shows_maps(self) -> bool:
        """Whether the forward pass that runs now gives attention maps."""
        return bool((self.inputs or {}).get("output_attentions"))

    @contextmanager
    def holding(self, **values: Any) -> Iterator[None]:
        """Inside, these attributes have these values; then what they had before."""
        before = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(before)

    @contextmanager
    def reading(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Let the blocks read the inputs of the forward pass inside."""
        with self.holding(inputs=inputs):
            self.begin(inputs)
            yield

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
        """Count one block's divergence: collect it, or inject its gradient into `hidden`."""
        mask = self.mask(d_BT)
        total, count = masked_sum(d_BT.detach(), mask)
        self.latest[layer] = (total, count)
        if self.terms is not None:
            self.terms.add(layer, d_BT, weight)
            if self.claim is None:
                return hidden
        weighted, _ = masked_sum(d_BT * weight, mask)
        penalty = weighted / count.clamp_min(1) / self.num_terms
        share: float | Tensor | None = self.share_of_targets()
        if share is None and (steps := self.gradient_accumulation_steps or _accelerate_steps()):
            share = 1.0 / steps
        return InjectGradient.apply(hidden, penalty, share, self.claim)

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
        terms = DivergenceTerms()
        with self.holding(terms=terms):
            yield terms

    def penalty(self, terms: DivergenceTerms, inputs: Mapping[str, Any]) -> Tensor:
        """What the loss of a forward pass adds to its cross-entropy."""
        total, count = terms.total(token_mask(inputs, self.divergence_tokens))
        share = self.share_of_targets()
        return total / count.clamp_min(1) * (1.0 if share is None else share)

    def means(self) -> dict[int, float]:
        """Mean divergence per layer in the last training forward pass, detached."""
        return {layer: (s / n.clamp_min(1)).item() for layer, (s, n) in self.latest.items()}

    @contextmanager
    def claiming(self) -> Iterator[Claim]:
        """Inside runs a forward pass whose loss will hold the divergence."""
        claim = Claim()
        with self.holding(claim=claim):
            yield claim

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
