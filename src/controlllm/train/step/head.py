"""The loss without all logits at once: the LM head applied to a few positions at a time.

At a vocabulary of 128k the logits of 8,192 positions are 4 GiB in float32, and as much again for
their gradient: more than the activations of the model. So the model gives the hidden states before
its head, only those that predict a target are kept, and the head with its loss runs on
`training.loss_chunk_size` of them at a time; so does the base's, where rows are rehearsed by KL.
The gradient of a chunk is computed with it, so its logits are gone when the next one begins, and
nothing is computed twice.

torch 2.13 has the same as `torch.nn.functional.linear_cross_entropy`; it rounds the sum of
thousands of losses to the type of its input, which in bfloat16 leaves two digits to be logged.

Shapes: B batch, T tokens, D hidden width, V vocabulary, N positions with a target.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from controlllm.common.errors import ModelError
from controlllm.common.losses import log_probs_kl, target_mask
from controlllm.evaluate import evaluating

Weigh = Callable[[Tensor, Tensor], Tensor]
"""(logits (N, V) in float32, targets (N,)) -> what each cross-entropy is multiplied by."""

HeadInputs = tuple[Tensor, Tensor, Tensor | None, Tensor]
"""What predicts a target (N, D), weight and bias of the head, and the targets (N)."""

_Slopes = Callable[[Tensor, slice], Tensor]
"""(logits (N, V) in float32, of which positions) -> the sum of their losses; in the place of the
logits comes d loss / d logits."""

__all__ = [
    "HeadInputs",
    "check_head",
    "chunked_cross_entropy_sum",
    "chunked_kl_sum",
    "head_inputs",
    "hidden_states_of",
]


def hidden_states_of(
    model: PreTrainedModel, inputs: dict[str, Any], caller: nn.Module | None = None
) -> Tensor:
    """What the model gives its head (B, T, D), with its graph; no logits are made.

    An engine that wraps the model can be called instead of it, as `caller`.
    """
    head: nn.Module = model.get_output_embeddings()
    before = head.__dict__.get("forward")
    # A copy: FSDP warns of a model that returns a view of what a module inside it made.
    head.forward = lambda hidden_states: hidden_states.clone()
    try:
        hidden_BTD: Tensor = (caller or model)(**inputs).logits
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before
    return hidden_BTD


def chunked_cross_entropy_sum(
    hidden_BTD: Tensor,
    model: PreTrainedModel,
    labels_BT: Tensor,
    chunk: int,
    weigh: Weigh | None = None,
) -> Tensor:
    """Sum of next-token cross-entropy in nats, as `common.losses.cross_entropy_sum` of the logits.

    Labels are unshifted, -100 = no target; `chunk` positions have their logits at a time. With
    `weigh` it is the sum of `common.losses.weighted_cross_entropy_sum`.
    """
    *given, targets_N = head_inputs(hidden_BTD, model, labels_BT)

    def slopes(logits_NV: Tensor, part: slice) -> Tensor:
        weights_N = None if weigh is None else weigh(logits_NV, targets_N[part])
        return _replace_by_slopes(logits_NV, targets_N[part, None], weights_N)

    total: Tensor = _ChunkedLoss.apply(*given, chunk, slopes)
    return total


def chunked_kl_sum(base: HeadInputs, model: HeadInputs, chunk: int) -> Tensor:
    """Sum of KL(base ‖ model) in nats, as `common.losses.kl_sum` of the logits of both.

    Both predict the same targets, with `chunk` positions' logits at a time; the base may have fewer
    columns, and gets no gradient.
    """
    base_ND, weight_UD, bias_U, _ = base

    def slopes(logits_NV: Tensor, part: slice) -> Tensor:
        base_NU = F.linear(base_ND[part], weight_UD, bias_U).float()
        for logits in (base_NU, logits_NV):  # Alike, so that equal ones have no slope at all.
            logits -= logits.logsumexp(-1, keepdim=True)
        total = log_probs_kl(base_NU, logits_NV).sum()
        logits_NV.exp_()[:, : len(weight_UD)] -= base_NU.exp_()
        return total

    total: Tensor = _ChunkedLoss.apply(*model[:3], chunk, slopes)
    return total


def head_inputs(hidden_BTD: Tensor, model: PreTrainedModel, labels_BT: Tensor) -> HeadInputs:
    """What the head makes logits of, where they predict a target."""
    head: Any = model.get_output_embeddings()
    mask_BT = target_mask(labels_BT)
    targets_N = labels_BT.roll(-1, dims=1)[mask_BT]
    # The weight is joined once for all chunks where the head is an expanded one.
    given = [hidden_BTD[mask_BT], head.weight, head.bias]
    kind = hidden_BTD.device.type
    if torch.is_autocast_enabled(kind):
        # Once, not for every chunk; and what runs inside has no autocast.
        dtype = torch.get_autocast_dtype(kind)
        given = [tensor if tensor is None else tensor.to(dtype) for tensor in given]
    hidden_ND, weight_VD, bias_V = given
    return hidden_ND, weight_VD, bias_V, targets_N


class _ChunkedLoss(torch.autograd.Function):
    """Sum of the losses of `linear(hidden, weight, bias)`; its gradient comes with it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        chunk: int,
        slopes: _Slopes,
    ) -> Tensor:
        into_hidden, into_weight, into_bias, *_ = ctx.needs_input_grad
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        hidden_grad = torch.empty_like(hidden_ND) if into_hidden else None
        weight_grad = torch.zeros_like(weight_VD, dtype=torch.float32) if into_weight else None
        bias_grad = hidden_ND.new_zeros(len(weight_VD), dtype=torch.float32) if into_bias else None
        for start in range(0, len(hidden_ND), chunk):
            part = slice(start, start + chunk)
            logits = F.linear(hidden_ND[part], weight_VD, bias_V).float()
            total += slopes(logits, part)
            slope_NV = logits.to(hidden_ND.dtype)
            if hidden_grad is not None:
                hidden_grad[part] = slope_NV @ weight_VD
            if weight_grad is not None and weight_grad.dtype == slope_NV.dtype:
                weight_grad.addmm_(slope_NV.t(), hidden_ND[part])  # without a result in between
            elif weight_grad is not None:
                weight_grad += slope_NV.t() @ hidden_ND[part]
            if bias_grad is not None:
                bias_grad += logits.sum(0)
            # Not beside those of the next chunk.
            del logits, slope_NV
        ctx.grads = hidden_grad, weight_grad, bias_grad
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        # In place: a copy would be as large as the head. So it goes backward once only.
        grads, ctx.grads = ctx.grads, None
        return *(None if each is None else each.mul_(grad) for each in grads), None, None


def _replace_by_slopes(
    logits_NV: Tensor, targets_N1: Tensor, weights_N: Tensor | None = None
) -> Tensor:
    """The sum of the losses; in the place of the logits comes d loss / d logits.

    That is softmax minus one-hot, times a weight. As large as the logits is nothing else.
    """
    logits_NV -= logits_NV.amax(-1, keepdim=True)
    losses_N1 = -logits_NV.gather(1, targets_N1)
    sums_N1 = logits_NV.exp_().sum(-1, keepdim=True)
    losses_N1 += sums_N1.log()
    logits_NV /= sums_N1
    logits_NV.scatter_add_(1, targets_N1, -torch.ones_like(losses_N1))
    if weights_N is not None:
        losses_N1 *= weights_N[:, None]
        logits_NV *= weights_N[:, None]
    return losses_N1.sum()


def check_head(model: PreTrainedModel) -> None:
    """Check by a forward pass that the logits are the head applied to the hidden states.

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
            "scale); set training.loss_chunk_size=null, and training.liger_kernel_config: "
            "{fused_linear_cross_entropy: false} where Liger's kernels are used."
        )
