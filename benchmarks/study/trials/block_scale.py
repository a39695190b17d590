"""`mse` in units of each block: how much the frozen block changes its input, at step 0.

    d(p, e) = mean over D of (e - p)^2 / scale_l
    scale_l = median over the tokens of the first batches of mean over D of (p - x)^2

The median, as the first tokens of some models carry states a thousand times larger than all others.
It is measured as a run is set up, on what it is going to read first, so a run that goes on from a
checkpoint finds the same. The divergences that are logged stay in units of the activations.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch
from benchmarks.study import trial
from torch import Tensor

from controlllm.data import model_inputs
from controlllm.evaluate.forgetting.losses import evaluating
from controlllm.expansion import ControlLLMForCausalLM
from controlllm.expansion.method.block import ConcatBlock, first
from controlllm.train.setup import ready as setup
from controlllm.train.setup.stages import Ready, Sharded

__all__ = ["Trial", "block_scales"]


class Trial(trial.Trial):
    """Divides each block's weight by its scale."""

    def __init__(self, batches: int = 4, statistic: str = "median") -> None:
        """How many batches are measured, and what is taken of their tokens: median or mean."""
        self.batches, self.statistic = batches, statistic

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, a run that is set up measures its scales before it trains."""
        make_ready = setup.make_ready

        def measured(sharded: Sharded) -> Ready:
            ready = make_ready(sharded)
            before = ready.loader.state_dict()
            batches = [ready.to_device(b) for b in islice(ready.loader, self.batches)]
            ready.loader.load_state_dict(before)
            model: Any = ready.model
            scales = block_scales(model, batches, self.statistic)
            for layer, scale in scales.items():
                model.blocks[layer].weight /= scale
            print("scales", json.dumps({layer: round(s, 4) for layer, s in scales.items()}))
            return ready

        with patch.object(setup, "make_ready", measured):
            yield


@torch.no_grad()
def block_scales(
    model: ControlLLMForCausalLM, batches: Sequence[Mapping[str, Any]], statistic: str = "median"
) -> dict[int, float]:
    """The scale of each expanded block on the base, by layer."""
    changes: dict[int, list[Tensor]] = {}
    real: list[Tensor] = []

    def note(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            change_BTD = first(output).float() - inputs[0].float()
            changes.setdefault(layer, []).append(change_BTD.square().mean(-1)[real[-1]])

        return hook

    blocks = {i: b for i, b in model.blocks.items() if isinstance(b, ConcatBlock)}
    hooks = [b.pretrained.register_forward_hook(note(layer)) for layer, b in blocks.items()]
    try:
        with evaluating(model), model.disable_expansion():
            for batch in batches:
                real.append(batch["origin"] >= 0)
                model(**{k: v for k, v in model_inputs(batch).items() if k != "labels"})
    finally:
        for hook in hooks:
            hook.remove()
    taken = torch.median if statistic == "median" else torch.mean
    return {layer: taken(torch.cat(found)).item() for layer, found in changes.items()}
