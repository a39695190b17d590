"""The divergences of one forward pass, block by block.

Shapes: B batch, T tokens.
"""

import torch
from torch import Tensor

from controlllm.common.losses import masked_sum

__all__ = ["DivergenceTerms"]


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
