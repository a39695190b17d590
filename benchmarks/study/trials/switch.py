"""Both models kept, and a switch that says for each document which of them answers.

Both read the first tokens of a document, where the base answers; from there on the tuned model does
if it was better on them by more than a threshold. The dial w sets that: (1/w - 1) / 2 nats per
token, none at 1. An oracle takes whichever is better on the whole document: nobody could, and it
says how much a better switch might gain. It costs the memory of both models, and both compute.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from benchmarks.study import trial
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from controlllm.data import Batch
from controlllm.evaluate.forgetting.dial import Dial
from controlllm.evaluate.forgetting.reference import Reference

__all__ = ["Switch", "Trial"]


class Switch(nn.Module):
    """Base or tuned model, row by row."""

    def __init__(self, base: nn.Module, tuned: nn.Module, read: int | None) -> None:
        super().__init__()
        self.base, self.tuned, self.read = base, tuned, read
        self.config = tuned.config
        self.threshold = 0.0

    def turn(self, weight: float | None) -> None:
        """Set the threshold; None and 1 are none."""
        self.threshold = (1 / (1.0 if weight is None else weight) - 1) / 2

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> CausalLMOutput:
        """Logits (B, T, V) of the model that is taken for each row."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        base_BTV, tuned_BTV = (model(**inputs).logits for model in (self.base, self.tuned))
        gain_B = self._loss(base_BTV, input_ids, attention_mask) - self._loss(
            tuned_BTV, input_ids, attention_mask
        )
        places_T = torch.arange(input_ids.shape[1], device=input_ids.device)
        decided_T = places_T >= (self.read or 0)
        taken_BT1 = ((gain_B > self.threshold)[:, None] & decided_T)[..., None]
        return CausalLMOutput(logits=torch.where(taken_BT1, tuned_BTV, base_BTV))

    def _loss(self, logits_BTV: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Mean loss of each row (B,) over the tokens that are read."""
        seen = slice(1, self.read)
        logits_BTV, mask_BT = logits_BTV[:, :-1][:, : self.read and self.read - 1], mask_BT[:, seen]
        loss_BT = nn.functional.cross_entropy(
            logits_BTV.float().transpose(1, 2), ids_BT[:, seen], reduction="none"
        )
        return (loss_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp_min(1)


class Trial(trial.Trial):
    """`read`: how many tokens the switch reads; None = the whole document (the oracle)."""

    def __init__(self, read: int | None = 32) -> None:
        self.read = read

    def dial(self, dial: Dial, chosen: Mapping[str, Sequence[Batch]]) -> Dial:
        dial.turn(None)
        base = dial.reference.copy
        assert base is not None  # it is full tuning that is measured
        switch = Switch(base, dial.model, self.read)
        return Dial(switch, switch.turn, Reference(switch, copy=base), "threshold of the switch")
