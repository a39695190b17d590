"""How far the branches of a block are apart: pure functions, in float32.

Shapes: B batch, T tokens, D hidden width, H attention heads, S keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attention_kl", "cosine", "relative_change", "two_dimensions"]


def relative_change(pretrained_BTD: Tensor, expanded_BTD: Tensor) -> Tensor:
    """|e - p| / |p| per token (B, T): 0 where the copy says what its frozen twin says."""
    p, e = pretrained_BTD.float(), expanded_BTD.float()
    return (e - p).norm(dim=-1) / p.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)


def cosine(pretrained_BTD: Tensor, expanded_BTD: Tensor) -> Tensor:
    """cos(p, e) per token (B, T): 1 where both point the same way, whatever their lengths."""
    return F.cosine_similarity(pretrained_BTD.float(), expanded_BTD.float(), dim=-1)


def attention_kl(pretrained_BHTS: Tensor, expanded_BHTS: Tensor) -> Tensor:
    """KL(A_e || A_p) of each head (H) in nats, the mean over all queries.

    As `divergence: attention` has it, head by head.
    """
    floor = torch.finfo(torch.float32).tiny
    p, e = pretrained_BHTS.float(), expanded_BHTS.float()
    terms = e * (e.clamp_min(floor).log() - p.clamp_min(floor).log())
    return terms.sum(-1).mean((0, 2))


def two_dimensions(vectors_ND: Tensor) -> Tensor:
    """The coordinates of vectors (N, 2) on their two principal components.

    Signs are those that make the largest coordinate of each component positive.
    """
    centred = vectors_ND.double() - vectors_ND.double().mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    flat = u * s
    flat = F.pad(flat, (0, max(0, 2 - flat.shape[1])))[:, :2]
    largest = flat.gather(0, flat.abs().argmax(0, keepdim=True))
    return (flat * torch.where(largest < 0, -1.0, 1.0)).float()
