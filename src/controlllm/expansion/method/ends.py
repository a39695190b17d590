"""Expanded ends: trainable copies of embedding, final norm and LM head, joined by a constant alpha.

Lookup and head are linear, so joining their outputs is joining their weights: exact, and alpha 0 is
the base. Rows of added tokens exist in the copies only. At alpha 0, where the model is the base, an
added token keeps its trained embedding (the base has none to offer) and can never be predicted
(logit -inf), so that the base's distribution over its own vocabulary is untouched.

Source: docs/method.md §6; not in the paper.
Shapes: B batch, T tokens, D hidden width, V base vocabulary, W >= V grown vocabulary.
"""

import math
from abc import ABC

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from controlllm.common.forwarding import Forwarding
from controlllm.expansion.method.dials import PartDial, dial_at, is_number, is_zero
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.interpolators import Lerp
from controlllm.expansion.method.state import AlignmentState

__all__ = [
    "ExpandedEmbedding",
    "ExpandedEnd",
    "ExpandedHead",
    "ExpandedNorm",
    "grow_ends",
    "set_vocab_size",
]

FEW_TOKENS = 16
"""Up to so many the head joins outputs, not weights, where there are no gradients."""


class ExpandedEnd(Forwarding, ABC):
    """A frozen end of the model, its trainable copy, and their constant alpha.

    Attributes it does not have are the copy's (which knows the grown vocabulary).
    """

    forwards_to = "expanded"

    def __init__(
        self,
        pretrained: nn.Module,
        expanded: nn.Module,
        config: ExpansionConfig,
        state: AlignmentState,
    ) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.expanded = expanded
        self.interpolator = Lerp(0, alpha=config.alpha, train_alpha=config.train_alpha)
        self.state = state
        self.dial: PartDial = None

    @property
    def is_base(self) -> bool:
        """Whether this end computes exactly the base now."""
        return not self.state.enabled or is_zero(self.dial)

    def dial_of(self, x: Tensor) -> float | Tensor | None:
        """The dial in this forward pass, for states x (B, T, ...); see `dial_at`."""
        return dial_at(self.dial, x)

    def join(self, pretrained: Tensor, expanded: Tensor) -> Tensor:
        """(1 - alpha) pretrained + alpha expanded; per row where they are states (B, T, ...)."""
        dial = self.dial_of(pretrained)
        return self.interpolator(pretrained, pretrained, expanded, dial)[0]

    def join_rows(self, pretrained: Tensor, expanded: Tensor) -> Tensor:
        """Join along the vocabulary: rows that only the copy has are the copy's (W, ...)."""
        rows, expanded = pretrained.shape[0], expanded.to(pretrained.dtype)
        joined = self.join(pretrained, expanded[:rows])
        return joined if rows == expanded.shape[0] else torch.cat([joined, expanded[rows:]])


class ExpandedNorm(ExpandedEnd):
    """The final norm: outputs are joined."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The joined norm of (B, T, D)."""
        pretrained = self.pretrained(hidden_states)
        return pretrained if self.is_base else self.join(pretrained, self.expanded(hidden_states))


class ExpandedEmbedding(ExpandedEnd):
    """The token embedding: looked-up rows are joined."""

    pretrained: nn.Embedding
    expanded: nn.Embedding

    @property
    def weight(self) -> Tensor:
        """The joined table (W, D)."""
        return self.join_rows(self.pretrained.weight, self.expanded.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        """The joined rows (B, T, D) of ids (B, T)."""
        rows = self.pretrained.num_embeddings
        added = input_ids >= rows
        grown = self.expanded.num_embeddings > rows
        pretrained = self.pretrained(input_ids.masked_fill(added, 0) if grown else input_ids)
        if self.is_base and not grown:
            return pretrained
        # Copies train in more bits; the stream has the base's, or alpha 0 would not be the base.
        expanded = self.expanded(input_ids).to(pretrained.dtype)
        joined = pretrained if self.is_base else self.join(pretrained, expanded)
        return torch.where(added[..., None], expanded, joined) if grown else joined


class ExpandedHead(ExpandedEnd):
    """The LM head: weights are joined, for a linear map the same as outputs at half the cost.

    Outputs are joined instead with an alpha per row, for which there is no one joined weight; and
    for few tokens without gradients, where making that weight costs more than both products.
    """

    pretrained: nn.Linear
    expanded: nn.Linear

    @property
    def weight(self) -> Tensor:
        """The joined weight (W, D); loops with fused losses read it instead of calling the head."""
        if self.is_base:
            pretrained = self.pretrained.weight
            return torch.cat(
                [pretrained, self.expanded.weight[pretrained.shape[0] :].to(pretrained.dtype)]
            )
        if is_number(self.dial) and self.dial == 1:  # a straight line ends in e, bit for bit
            return self.expanded.weight.to(self.pretrained.weight.dtype)
        return self.join_rows(self.pretrained.weight, self.expanded.weight)

    @property
    def bias(self) -> Tensor | None:
        """The joined bias (W,); at alpha 0 it forbids added tokens."""
        rows = self.pretrained.weight.shape[0]
        added = self.expanded.weight.shape[0] - rows
        pretrained, expanded = self.pretrained.bias, self.expanded.bias
        if not self.is_base:
            return None if expanded is None else self.join_rows(pretrained, expanded)
        if not added:
            return pretrained
        kept = self.pretrained.weight.new_zeros(rows) if pretrained is None else pretrained
        return torch.cat([kept, kept.new_full((added,), -math.inf)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Logits (B, T, W) of hidden states (B, T, D)."""
        if self.is_base:
            logits = self.pretrained(hidden_states)
            added = self.expanded.weight.shape[0] - logits.shape[-1]
            return F.pad(logits, (0, added), value=-math.inf) if added else logits
        dial = self.dial_of(hidden_states)
        tokens = hidden_states.shape[:-1].numel()
        few = tokens <= FEW_TOKENS and not torch.is_grad_enabled()
        if not isinstance(dial, Tensor) and (dial == 1 or not few):
            return F.linear(hidden_states, self.weight, self.bias)
        logits, expanded = self.pretrained(hidden_states), self.expanded(hidden_states)
        own, added = expanded.split([logits.shape[-1], expanded.shape[-1] - logits.shape[-1]], -1)
        joined = self.interpolator(logits, logits, own, dial)[0]
        return self.forbid_added(torch.cat([joined, added], -1)) if added.shape[-1] else joined

    def forbid_added(self, logits: Tensor) -> Tensor:
        """Logits (B, T, W) with -inf for added tokens where the model is the base."""
        rows = self.pretrained.weight.shape[0]
        if logits.shape[-1] == rows:
            return logits
        is_added = torch.arange(logits.shape[-1], device=logits.device) >= rows
        if self.is_base:
            return logits.masked_fill(is_added, -math.inf)
        dial = self.dial_of(logits)
        if not isinstance(dial, Tensor):
            return logits
        return logits.masked_fill(is_added & (dial == 0), -math.inf)

    def dial_of(self, x: Tensor) -> float | Tensor | None:
        """The dial in this forward pass, for states of the tokens whose logits are wanted."""
        return dial_at(self.dial, x, (self.state.inputs or {}).get("logits_to_keep"))


def grow_ends(embedding: nn.Embedding, head: nn.Linear, rows: int) -> None:
    """Grow the copies of embedding and head to `rows` tokens; tied ones stay tied."""
    tied = head.weight is embedding.weight
    embedding.weight = _grown(embedding.weight, rows)
    embedding.num_embeddings = rows
    head.weight = embedding.weight if tied else _grown(head.weight, rows)
    if head.bias is not None:
        head.bias = _grown(head.bias, rows)
    head.out_features = rows


def _grown(old: Tensor, rows: int) -> nn.Parameter:
    """A parameter with more rows; new ones are the mean of the old."""
    mean = old.data.float().mean(0, keepdim=True).to(old.dtype)
    added = mean.expand(rows - old.shape[0], *old.shape[1:])
    return nn.Parameter(torch.cat([old.data, added]), requires_grad=old.requires_grad)


def set_vocab_size(base: PreTrainedModel, vocab_size: int) -> None:
    """Tell a model how many tokens it knows, in its config and where it keeps the number apart."""
    base.config.get_text_config().vocab_size = vocab_size
    if hasattr(base, "vocab_size"):
        base.vocab_size = vocab_size
