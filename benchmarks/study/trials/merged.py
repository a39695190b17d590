"""Merged back: at each setting of the dial the trained parts are folded into the base by weight."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.study import trial
from torch import nn

from controlllm.data import Batch
from controlllm.evaluate.forgetting.dial import Dial
from controlllm.expansion import ControlLLMForCausalLM, collapse

__all__ = ["Merged", "Trial"]


class Merged(nn.Module):
    """What an expanded model collapses to at the alpha that was set last."""

    def __init__(self, model: ControlLLMForCausalLM) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.turn(None)

    def turn(self, alpha: float | None) -> None:
        """Fold at an alpha; None is the one that was trained."""
        self.model.set_alpha(alpha)
        self.folded = collapse(copy.deepcopy(self.model))

    def forward(self, **inputs: Any) -> Any:
        """What the folded model says (logits (B, T, V))."""
        return self.folded(**inputs)


class Trial(trial.Trial):
    """The dial is where the weights are folded; reference is the base inside the expanded model."""

    def dial(self, dial: Dial, chosen: Mapping[str, Sequence[Batch]]) -> Dial:
        assert isinstance(dial.model, ControlLLMForCausalLM)
        merged = Merged(dial.model)
        return Dial(merged, merged.turn, dial.reference, "alpha of the merge")
