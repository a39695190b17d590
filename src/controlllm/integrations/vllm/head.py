"""The expanded LM head: all branches cut over the vocabulary, as vLLM cuts heads.

Shapes: N tokens whose logits are wanted, D hidden width, V base vocabulary, W grown vocabulary, K
sidecars.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)

from controlllm.expansion.method.ends import ExpandedHead
from controlllm.expansion.method.several import SharedTable, blend
from controlllm.integrations.vllm.rows import as_saved

__all__ = ["Owner", "VocabParallelHead"]

Owner = tuple[int, float | None]
"""The place of a part's sidecar among K, and the dial that the part was saved with, if any."""


class VocabParallelHead(nn.Module):
    """Stands in the place of vLLM's own head; names of its weights are the saved ones.

    Args:
        head: the expanded head as the method makes it, without weights.
        owners: of each sidecar's part of it.
        prefix: its name in the model.
    """

    bias = None

    def __init__(
        self, head: ExpandedHead | SharedTable, owners: Sequence[Owner], prefix: str
    ) -> None:
        super().__init__()
        self.pretrained, self.logits = _cut(_linear(head.pretrained), f"{prefix}.pretrained")
        if isinstance(head, SharedTable):
            made = [
                _Copy(part, owner, f"{prefix}.sidecars.{name}")
                for (name, part), owner in zip(head.sidecars.items(), owners, strict=True)
            ]
            self.sidecars = nn.ModuleDict(dict(zip(head.sidecars, made, strict=True)))
        else:
            made = [_Copy(head, owners[0], prefix)]
            self.expanded, self.interpolator = made[0].expanded, made[0].interpolator
        # No list of modules: the weights have the names above only.
        self.copies = tuple(made)

    def tie(self, embedding: nn.Module) -> None:
        """Share each branch's weight with the same branch of the expanded embedding."""
        parts = embedding.parts if isinstance(embedding, SharedTable) else [embedding]
        assert isinstance(embedding.pretrained, nn.Module)
        self.pretrained.tie_weights(_table(embedding.pretrained))
        for copy, part in zip(self.copies, parts, strict=True):
            copy.expanded.tie_weights(_table(part.expanded))

    def forward(self, hidden_ND: Tensor, dials_NK: Tensor) -> Tensor | None:
        """Logits (N, W), with added tokens impossible at dial 0; None where ranks do not sample."""
        pretrained = self.logits(self.pretrained, hidden_ND)
        # Every rank takes part in each, though not all get the logits.
        expanded = [copy.logits(copy.expanded, hidden_ND) for copy in self.copies]
        if pretrained is None:
            return None
        joined = [
            copy.join(pretrained, one, dials_NK)
            for copy, one in zip(self.copies, expanded, strict=True)
        ]
        return joined[0][0] if len(joined) == 1 else blend(pretrained, joined)


class _Copy(nn.Module):
    """A sidecar's part of the head."""

    def __init__(self, part: nn.Module, owner: Owner, prefix: str) -> None:
        super().__init__()
        assert isinstance(part, ExpandedHead)
        self.sidecar, self.saved = owner
        self.interpolator = part.interpolator
        self.expanded, self.logits = _cut(_linear(part.expanded), f"{prefix}.expanded")

    def join(self, pretrained: Tensor, expanded: Tensor, dials_NK: Tensor) -> tuple[Tensor, Tensor]:
        """What this sidecar alone would give (N, W), and its dial (N, 1)."""
        dial = as_saved(dials_NK[:, self.sidecar, None], self.saved)
        own, added = expanded.tensor_split([pretrained.shape[-1]], dim=-1)
        joined = self.interpolator(pretrained, pretrained, own, dial)[0]
        return torch.cat([joined, added.masked_fill(dial == 0, -math.inf)], dim=-1), dial


def _cut(old: nn.Linear, prefix: str) -> tuple[ParallelLMHead, LogitsProcessor]:
    """A branch as vLLM holds it, and what gathers its logits."""
    head = ParallelLMHead(old.out_features, old.in_features, prefix=prefix)
    return head, LogitsProcessor(old.out_features)


def _linear(branch: nn.Module) -> nn.Linear:
    assert isinstance(branch, nn.Linear)
    return branch


def _table(embedding: nn.Module) -> VocabParallelEmbedding:
    assert isinstance(embedding, VocabParallelEmbedding)
    return embedding
