"""The same numbers in the course of a training: one forward pass more for each held-out set."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from controlllm.common.losses import masked_sum, token_mask
from controlllm.data import Batch, model_inputs
from controlllm.evaluate import evaluating
from controlllm.probe.quantities import cosine, relative_change

__all__ = ["probe_scalars"]


@torch.no_grad()
def probe_scalars(model: Any, batch: Batch) -> dict[str, float]:
    """|e - p| / |p|, cos(p, e) and alpha of every expanded block, means over a batch's real tokens.

    One forward pass, which keeps both outputs of all blocks for its time: 2 B T D numbers each.

    Args:
        model: an expanded model; its modes stay as they are.
        batch: padded or packed.

    Returns:
        `relative_change/layer_3` and the like.
    """
    inputs = {k: v for k, v in dict(model_inputs(batch)).items() if k != "labels"}
    inputs = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    with evaluating(model), model.unrecorded(), model.probe(list(model.blocks)) as probe:
        model(**inputs)
    mask, found = token_mask(inputs), {}
    for layer in model.blocks:
        pair = probe.pretrained[layer], probe.expanded[layer]
        numbers: Mapping[str, Tensor] = {
            "relative_change": relative_change(*pair),
            "cosine": cosine(*pair),
            "alpha": probe.alpha[layer],
        }
        for name, values_BT in numbers.items():
            total, count = masked_sum(values_BT, mask)
            found[f"{name}/layer_{layer}"] = (total / count.clamp_min(1)).item()
    return found
