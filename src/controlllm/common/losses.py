"""The only place that masks or reduces: sums with counts, divided once by the global count.

Shapes: B batch, T tokens, V vocabulary. Labels are Hugging Face style: as long as `input_ids`,
unshifted, -100 where a token is no target; the shift by one happens here and nowhere else.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "IGNORE_INDEX",
    "cross_entropy_documents",
    "cross_entropy_sum",
    "hits_sum",
    "kl_sum",
    "log_probs_kl",
    "masked_sum",
    "next_token_kl",
    "sum_documents",
    "target_log_probs",
    "target_mask",
    "target_nll",
    "token_mask",
    "weighted_cross_entropy_sum",
]

IGNORE_INDEX = -100


def target_mask(labels_BT: Tensor) -> Tensor:
    """Positions whose *next* token is a target (B, T bool; the last position never is)."""
    return F.pad(labels_BT[:, 1:] != IGNORE_INDEX, (0, 1), value=False)


def cross_entropy_sum(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of next-token cross-entropy in nats, and the number of targets.

    Args:
        logits_BTV: logits at each position, any float type; the sum is taken in float32.
        labels_BT: unshifted labels, -100 = no target.

    Returns:
        (sum, count), both 0-dim.
    """
    logits, labels = _next_tokens(logits_BTV, labels_BT)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total, (labels != IGNORE_INDEX).sum()


def cross_entropy_documents(
    logits_BTV: Tensor, labels_BT: Tensor, documents_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """The same sum and number of targets of each document that has targets (D,), in their order.

    `documents_BT` has the number of a document at each of its tokens.
    """
    logits, targets = _at_targets(logits_BTV, labels_BT)
    losses_N = F.cross_entropy(logits, targets, reduction="none")
    documents_N = documents_BT.to(losses_N.device)[target_mask(labels_BT).to(losses_N.device)]
    return sum_documents(losses_N, documents_N)


def sum_documents(numbers_N: Tensor, documents_N: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the targets of each document, and how many it has (D,), in their order.

    Args:
        numbers_N: a number, or a row of them, of each target (N, ...); the sums are (D, ...).
        documents_N: the number of the document that it is in.
    """
    _, place_N, counts_D = documents_N.unique(return_inverse=True, return_counts=True)
    sums_D = numbers_N.new_zeros(len(counts_D), *numbers_N.shape[1:])
    return sums_D.index_add_(0, place_N, numbers_N), counts_D


def hits_sum(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """How many targets are the model's likeliest next token, and the number of targets."""
    logits, labels = _next_tokens(logits_BTV, labels_BT)
    return (logits.argmax(-1) == labels).sum(), (labels != IGNORE_INDEX).sum()


def _next_tokens(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float32 (B * (T - 1), V), and the label of the token that each predicts."""
    logits = logits_BTV[:, :-1].float().flatten(0, 1)
    return logits, labels_BT[:, 1:].flatten().to(logits.device)


def weighted_cross_entropy_sum(
    logits_BTV: Tensor, labels_BT: Tensor, weigh: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Sum of next-token cross-entropies in nats, each times a weight that has no gradient.

    `weigh(logits_NV, targets_N) -> weights_N` gets what predicts a target, in float32.
    """
    logits, targets = _at_targets(logits_BTV, labels_BT)
    with torch.no_grad():
        weights = weigh(logits, targets)
    # Unlike a product, which would take weights of other shapes for something.
    return torch.dot(weights.float(), F.cross_entropy(logits, targets, reduction="none"))


def kl_sum(reference_BTV: Tensor, logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over target positions of KL(reference || model) in nats, and the number of positions.

    The reference may have fewer columns than the model (tokens were added since); it gives those
    probability 0.
    """
    mask = target_mask(labels_BT).to(logits_BTV.device)
    return next_token_kl(reference_BTV[mask], logits_BTV[mask]).sum(), mask.sum()


def next_token_kl(reference_BTV: Tensor, logits_BTV: Tensor) -> Tensor:
    """KL(reference || model) in nats of what each position says comes next (B, T), in float32.

    The reference may have fewer columns than the model, as in `kl_sum`.
    """
    reference_BTV = F.log_softmax(reference_BTV.float(), dim=-1)
    return log_probs_kl(reference_BTV, F.log_softmax(logits_BTV.float(), dim=-1))


def log_probs_kl(reference: Tensor, model: Tensor) -> Tensor:
    """`next_token_kl` of log-probabilities (..., V), for who has them: KL in nats (...)."""
    model = model[..., : reference.shape[-1]]
    # Where the reference has probability 0 (log = -inf) the term is 0, not nan.
    return torch.where(reference.isneginf(), 0.0, reference.exp() * (reference - model)).sum(-1)


def target_log_probs(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """What is predicted where the next token is a target, for who measures several things on it.

    Returns:
        (log-probabilities (N, V) in float32, the targets (N,)).
    """
    logits, targets = _at_targets(logits_BTV, labels_BT)
    return F.log_softmax(logits, dim=-1), targets


def _at_targets(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Where the next token is a target: logits (N, V) in float32, the targets (N,)."""
    labels_BT = labels_BT.to(logits_BTV.device)
    mask_BT = target_mask(labels_BT)
    return logits_BTV[mask_BT].float(), labels_BT.roll(-1, dims=1)[mask_BT]


def target_nll(log_probs_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy in nats of each target (N,), from what `target_log_probs` gives."""
    return F.nll_loss(log_probs_NV, targets_N, reduction="none")


def token_mask(inputs: Mapping[str, Any], which: str = "all") -> Tensor:
    """Which positions count for the divergence (B, T bool).

    Args:
        inputs: a batch with `input_ids` (or `inputs_embeds`), and `attention_mask`, `position_ids`,
            `labels` where there are any. Without a mask the positions of a packed row tell: a
            document of one token is padding, since it predicts nothing and nothing predicts it.
        which: "all" for every real token, "target" for the positions that predict a target.
    """
    if which == "target" and inputs.get("labels") is not None:
        return target_mask(inputs["labels"])
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.bool()
    positions = inputs.get("position_ids")
    if isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] > 1:
        starts = positions == 0
        return ~(starts & F.pad(starts[:, 1:], (0, 1), value=True))
    tokens = inputs.get("input_ids")
    like = tokens if tokens is not None else inputs["inputs_embeds"][..., 0]
    return torch.ones_like(like, dtype=torch.bool)


def masked_sum(values_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the values where the mask is true, and how many; others never count, even nan."""
    mask = mask_BT.to(values_BT.device)
    return torch.where(mask, values_BT, 0.0).sum(), mask.sum()
