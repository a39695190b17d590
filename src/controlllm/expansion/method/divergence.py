"""Divergences: how far the trained branch has moved from its frozen twin, per token.

Each is a pure function of the two branches; it is >= 0, and 0 where they are equal. All are
computed in float32. Shapes: B batch, T tokens, D hidden width, H attention heads, S keys.

Source: Control LLM (arXiv 2501.10979), section 3.3, and docs/method.md §4; `nmse` is ours.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from controlllm.expansion.method.registries import DIVERGENCES

__all__ = ["DIVERGENCES", "Divergence", "attention", "cosine", "dot", "mse", "nmse"]

Divergence = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(pretrained, expanded, x) -> d_BT; x, the block's input, is for relative divergences."""


@DIVERGENCES.register("mse")
def mse(pretrained_BTD: Tensor, expanded_BTD: Tensor, x_BTD: Tensor) -> Tensor:
    """Mean over D of (e - p)²: the authors' choice for fine-tuning."""
    return (expanded_BTD.float() - pretrained_BTD.float()).square().mean(-1)


@DIVERGENCES.register("nmse")
def nmse(pretrained_BTD: Tensor, expanded_BTD: Tensor, x_BTD: Tensor) -> Tensor:
    """|e - p|² / |p - x|²: relative to what the block does, so that no depth dominates by scale.

    The denominator carries no gradient.
    """
    change = (pretrained_BTD.float() - x_BTD.float()).detach().square().sum(-1)
    distance = (expanded_BTD.float() - pretrained_BTD.float()).square().sum(-1)
    return distance / change.clamp_min(torch.finfo(torch.float32).tiny)


@DIVERGENCES.register("cosine")
def cosine(pretrained_BTD: Tensor, expanded_BTD: Tensor, x_BTD: Tensor) -> Tensor:
    """smooth-L1(relu(1 - cos(p, e))): the authors' choice for continual pre-training (margin 0)."""
    distance = 1 - F.cosine_similarity(pretrained_BTD.float(), expanded_BTD.float(), dim=-1)
    distance = F.relu(distance)
    return F.smooth_l1_loss(distance, torch.zeros_like(distance), reduction="none")


@DIVERGENCES.register("dot")
def dot(pretrained_BTD: Tensor, expanded_BTD: Tensor, x_BTD: Tensor) -> Tensor:
    """Half the cosine divergence plus half of (|p| - |e|)²: direction and magnitude."""
    norms = pretrained_BTD.float().norm(dim=-1) - expanded_BTD.float().norm(dim=-1)
    return 0.5 * cosine(pretrained_BTD, expanded_BTD, x_BTD) + 0.5 * norms.square()


@DIVERGENCES.register("attention")
def attention(pretrained_BHTS: Tensor, expanded_BHTS: Tensor, x_BTD: Tensor) -> Tensor:
    """KL(A_e || A_p) between the two attention maps: summed over keys, mean over heads.

    The block hands this one the branches' attention maps in place of their hidden states; they
    exist only with the eager attention implementation.
    """
    floor = torch.finfo(torch.float32).tiny
    p, e = pretrained_BHTS.float(), expanded_BHTS.float()
    terms = e * (e.clamp_min(floor).log() - p.clamp_min(floor).log())
    return terms.sum(-1).mean(1)
