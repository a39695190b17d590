"""The expanded LM head: both branches cut over the vocabulary, as vLLM cuts heads.

Shapes: N tokens whose logits are wanted, D hidden width, V base vocabulary, W grown vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)

from controlllm.expansion.method.ends import ExpandedHead

__all__ = ["VocabParallelHead"]


class VocabParallelHead(nn.Module):
    """Stands in the place of vLLM's own head; names of its weights are the saved ones.

    Args:
        head: the expanded head as the method makes it, without weights.
        prefix: its name in the model.
    """

    bias = None

    def __init__(self, head: ExpandedHead, prefix: str) -> None:
        super().__init__()
        self.interpolator = head.interpolator
        for branch, old in (("pretrained", head.pretrained), ("expanded", head.expanded)):
            made = ParallelLMHead(old.out_features, old.in_features, prefix=f"{prefix}.{branch}")
            setattr(self, branch, made)
        self.logits = nn.ModuleList(
            LogitsProcessor(old.out_features) for old in (head.pretrained, head.expanded)
        )

    def tie(self, embedding: nn.Module) -> None:
        """Share each branch's weight with the same branch of the expanded embedding."""
        for branch in ("pretrained", "expanded"):
            table = getattr(embedding, branch)
            assert isinstance(table, VocabParallelEmbedding)
            setattr(self, branch, getattr(self, branch).tie_weights(table))

    def forward(self, hidden_ND: Tensor, dial_N1: Tensor) -> Tensor | None:
        """Logits (N, W), with added tokens impossible at dial 0; None where ranks do not sample."""
        pretrained = self.logits[0](self.pretrained, hidden_ND)
        expanded = self.logits[1](self.expanded, hidden_ND)
        if pretrained is None:
            return None
        own, added = expanded.tensor_split([pretrained.shape[-1]], dim=-1)
        joined = self.interpolator(pretrained, pretrained, own, dial_N1)[0]
        return torch.cat([joined, added.masked_fill(dial_N1 == 0, -math.inf)], dim=-1)
