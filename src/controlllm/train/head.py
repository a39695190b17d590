"""The loss without all logits at once: the LM head applied to a few positions at a time.

At a vocabulary of 128k the logits of 8,192 positions are 4 GiB in float32, and as much again for
their gradient: more than the activations of the model. So the model gives the hidden states before
its head, only those that predict a target are kept, and the head with its loss runs on
`training.loss_chunk_size` of them at a time, computed again in backward.

Shapes: B batch, T tokens, D hidden width, V vocabulary, N positions with a target.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from controlllm.common.errors import ModelError
from controlllm.common.losses import target_mask
from controlllm.evaluate.losses import evaluating

__all__ = ["check_head", "chunked_cross_entropy_sum", "hidden_states_of"]


def hidden_states_of(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """What the model gives its head (B, T, D), with its graph; no logits are made."""
    with _without_head(model):
        hidden_BTD: Tensor = model(**inputs).logits
    return hidden_BTD


def chunked_cross_entropy_sum(
    hidden_BTD: Tensor, model: PreTrainedModel, labels_BT: Tensor, chunk: int
) -> Tensor:
    """Sum of next-token cross-entropy in nats, as `common.losses.cross_entropy_sum` of the logits.

    Args:
        hidden_BTD: what the model gives its head.
        model: has the head.
        labels_BT: unshifted labels, -100 = no target.
        chunk: positions whose logits exist at a time.
    """
    head: Any = model.get_output_embeddings()
    mask_BT = target_mask(labels_BT)
    hidden_ND = hidden_BTD[mask_BT]
    targets_N = labels_BT.roll(-1, dims=1)[mask_BT]
    # Joined once for all chunks, where the head is an expanded one.
    weight, bias = head.weight, head.bias
    total = hidden_ND.new_zeros((), dtype=torch.float32)
    for hidden, targets in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True):
        part: Tensor = checkpoint(_loss, hidden, weight, bias, targets, use_reentrant=False)
        total = total + part
    return total


def _loss(hidden_ND: Tensor, weight: Tensor, bias: Tensor | None, targets_N: Tensor) -> Tensor:
    logits_NV = F.linear(hidden_ND, weight, bias).float()
    return F.cross_entropy(logits_NV, targets_N, reduction="sum")


def check_head(model: PreTrainedModel) -> None:
    """Try out whether the logits are what the head makes of the hidden states, and nothing more.

    Raises:
        ModelError: the model caps or scales its logits, say; the loss would be another one.
    """
    head: Any = model.get_output_embeddings()
    inputs = {"input_ids": torch.tensor([[0, 1, 2]], device=model.device), "use_cache": False}
    with evaluating(model):
        whole = model(**inputs).logits
        apart = F.linear(hidden_states_of(model, inputs), head.weight, head.bias)
    if whole.shape != apart.shape or not torch.allclose(whole, apart, rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"{type(model).__name__} does more to its logits than its head does (a cap or a "
            "scale); set training.loss_chunk_size=null."
        )


@contextmanager
def _without_head(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's head hands hidden states through."""
    head: nn.Module = model.get_output_embeddings()
    before = head.__dict__.get("forward")
    # A copy: FSDP warns of a model that returns a view of what a module inside it made.
    head.forward = lambda hidden_states: hidden_states.clone()
    try:
        yield
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before
