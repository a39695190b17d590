"""The block: a frozen branch, a trained branch on the same input, and what joins them.

                  x (merged stream, B x T x D)
                  |---------------------------.
          pretrained f (frozen)        expanded g (trained copy)
                  | p                          | e
                  '------- interpolator -------'--> divergence d(p, e) per token
                                |
                         out = (1-alpha) p + alpha e

Source: Control LLM (arXiv 2501.10979), section 3; `stack` is LLaMA-Pro (arXiv 2401.02415).
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from controlllm.common.forwarding import Forwarding
from controlllm.common.tensors import whole
from controlllm.expansion.method.attention_maps import AttentionMaps
from controlllm.expansion.method.dials import (
    PartDial,
    base_where_zero,
    dial_at,
    is_number,
    is_zero,
    mean_alpha,
    turned,
)
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.interpolators import ConstantGate, Interpolator
from controlllm.expansion.method.registries import DIVERGENCES, INTERPOLATORS
from controlllm.expansion.method.relaxed_norm import RelaxedNorm
from controlllm.expansion.method.slots import Slots, Writers, move_slot
from controlllm.expansion.method.state import AlignmentState

__all__ = ["ConcatBlock", "ExpandedBlock", "StackBlock"]


class ExpandedBlock(Forwarding, ABC):
    """A pretrained decoder block with a trainable copy, in the block's place in the decoder.

    Attributes it does not have are the pretrained block's (decoder loops read `attention_type` and
    the like).

    Args:
        pretrained: the frozen block.
        expanded: its trainable copy.
        layer: the index of the block in the decoder.
        state: what the blocks of one model share during a forward pass.
        slot: the copy's own slot in the KV cache (its `layer_idx`).
    """

    forwards_to = "pretrained"
    frozen = False
    """Whether the copy, too, is frozen, beside one that trains: then it has no divergence, and its
    gate takes no part in what is measured of that one's."""

    def __init__(
        self,
        pretrained: nn.Module,
        expanded: nn.Module,
        layer: int,
        state: AlignmentState,
        slot: int,
    ) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.expanded = expanded
        self.layer = layer
        self.state = state
        self.slot = slot
        self._writers = Writers()
        self.dial: PartDial = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run both branches and join them; whatever else the pretrained block returns is kept.

        A branch that has no weight for any row does not run.
        """
        if self.copy_alone:
            with move_slot(self._writers.of(self.expanded, self.slot), self.layer):
                return self.expanded(hidden_states, *args, **kwargs)
        output = self.pretrained(hidden_states, *args, **kwargs)
        return self.beside(output, hidden_states, *args, **kwargs)

    def beside(self, output: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the expanded branch beside an output that the pretrained block has given already."""
        if self.is_base:  # whatever g would compute, and the interpolator do to f's output
            return output
        merged = self.join(hidden_states, first(output), *args, **kwargs)
        return (merged, *output[1:]) if isinstance(output, tuple) else merged

    def take_slot(self, slot: int) -> None:
        """Give the copy another slot of its own in the KV cache."""
        for module in self._writers.of(self.expanded, self.slot):
            setattr(module, "layer_idx", slot)  # noqa: B010  # mypy: modules have no such field
        self.slot = slot

    @property
    def is_base(self) -> bool:
        """Whether the block computes exactly the base's now, for all rows."""
        return not self.state.enabled or is_zero(self.dial)

    @property
    def copy_alone(self) -> bool:
        """Whether the block computes exactly the copy's output now, for all rows."""
        return False

    @property
    def slots(self) -> Slots:
        """Which slots of the KV cache the block writes now, and which branch each."""
        if self.copy_alone:
            return frozenset({(self.layer, self.slot)})
        return self.slots_beside

    @property
    def slots_beside(self) -> Slots:
        """The same where `beside` alone is called."""
        frozen = {(self.layer, self.layer)}
        return frozenset(frozen if self.is_base else {*frozen, (self.slot, self.slot)})

    @abstractmethod
    def join(self, x: Tensor, pretrained: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the expanded branch and give the merged stream (B, T, D)."""

    @abstractmethod
    def alpha(self) -> float | None:
        """Mean weight of the expanded branch now; None for a token gate that has not run yet."""


class ConcatBlock(ExpandedBlock):
    """The copy runs beside the block (the method)."""

    interpolator: Interpolator

    def __init__(
        self,
        pretrained: nn.Module,
        expanded: nn.Module,
        layer: int,
        state: AlignmentState,
        slot: int,
        config: ExpansionConfig,
        hidden_size: int,
    ) -> None:
        super().__init__(pretrained, expanded, layer, state, slot)
        make = INTERPOLATORS.get(config.interpolator)
        self.interpolator = make(hidden_size, alpha=config.alpha, train_alpha=config.train_alpha)
        self.weight = (
            None if config.divergence_weight == "dynamic" else float(config.divergence_weight)
        )
        self.detach_pretrained = config.detach_pretrained
        self.divergence = (
            None if config.divergence == "none" else DIVERGENCES.get(config.divergence)
        )
        self.maps: AttentionMaps | None = None
        if config.divergence == "attention":
            self.maps = AttentionMaps(pretrained, expanded)
        if config.relaxed_norm is not None:
            RelaxedNorm(config.relaxed_norm, self.constant_at).attach(expanded)

    def join(self, x: Tensor, pretrained: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The copy on the same input; its divergence counts in training."""
        expanded = first(self.expanded(x, *args, **kwargs))
        dial = dial_at(self.dial, x)
        merged, alpha = self.interpolator(x, pretrained, expanded, dial)
        gate = self.interpolator.last_gate
        if gate is not None and not self.replaced and not self.frozen:
            self.state.observe_alpha(self.layer, gate, x[..., 0])
        if not self.aligns:
            return merged
        d_BT = self.distance(x, pretrained, expanded)
        if isinstance(dial, Tensor):  # Rows that stand at 0 are the base: there g is not asked.
            d_BT = d_BT.masked_fill((dial == 0).squeeze(-1), 0)
        weight = self.weight if isinstance(self.weight, float) else alpha.squeeze(-1)
        return self.state.align(self.layer, d_BT, weight, merged)

    @property
    def aligns(self) -> bool:
        """Whether a divergence is wanted in this forward pass."""
        wanted = self.training and not self.frozen and self.state.wanted
        return self.divergence is not None and wanted

    @property
    def copy_alone(self) -> bool:
        """At 1 a straight line ends in e, bit for bit."""
        at_copy = is_number(self.dial) and self.dial == 1 and self.interpolator.straight
        return at_copy and self.state.enabled and not self.aligns and not self.state.shows_maps

    def distance(self, x: Tensor, pretrained: Tensor, expanded: Tensor) -> Tensor:
        """d(p, e) per token (B, T), in float32 whatever the autocast."""
        # Tensors without values (a plan of memory) know no autocast.
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            if self.maps is not None:
                pair = self.maps.take()
            else:
                pair = (self.interpolator.target(pretrained), expanded)
            target = pair[0].detach() if self.detach_pretrained else pair[0]
            return self.divergence(target, pair[1], x)  # type: ignore[misc]  # join has looked

    @property
    def replaced(self) -> bool:
        """Whether the dial stands in the place of the trained alpha, not beside it."""
        return self.dial is not None and self.interpolator.constant

    def alpha(self) -> float | None:
        """The dial, the constant, or the dial times the mean gate of the last forward pass."""
        if isinstance(self.interpolator, ConstantGate):
            known = is_number(self.dial)  # else a parameter that may lie in parts is asked
            return self.at_dial(None if known else whole(self.interpolator.alpha()).item())
        gate = self.interpolator.last_gate
        return self.at_dial(None if gate is None else gate.mean().item())

    def at_dial(self, gate: float | None) -> float | None:
        """Alpha where the gate gives so much, in the mean of all rows; None = not known."""
        return mean_alpha(self.dial, gate, self.interpolator.constant)

    def constant_at(self, x: Tensor) -> float | Tensor:
        """The constant alpha under the dial, for states x (B, T, D)."""
        dial = dial_at(self.dial, x)
        if is_number(dial):
            return dial
        assert isinstance(self.interpolator, ConstantGate)  # ExpansionConfig allows no other here
        constant = self.interpolator.alpha()
        return whole(constant).item() if dial is None else turned(constant, dial, replaces=True)


class StackBlock(ExpandedBlock):
    """The copy runs after the block and starts as the identity; the dial blends it in."""

    def join(self, x: Tensor, pretrained: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The copy on the pretrained block's output."""
        expanded = first(self.expanded(pretrained, *args, **kwargs))
        dial = dial_at(self.dial, x)
        if dial is None:
            return expanded
        alpha = turned(torch.ones(1, device=pretrained.device), dial, replaces=True)
        merged = torch.lerp(pretrained, expanded, alpha.to(pretrained.dtype))
        return base_where_zero(dial, pretrained, merged)

    def alpha(self) -> float | None:
        """The dial, in the mean of all rows; 1 where it is not turned."""
        return mean_alpha(self.dial, 1.0, replaces=True)


def first(output: Any) -> Tensor:
    """The hidden state of a block's output, which some architectures return in a tuple."""
    return output[0] if isinstance(output, tuple) else output
