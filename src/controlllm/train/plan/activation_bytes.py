"""Bytes that a forward pass keeps for backward, counted on the meta device.

The model runs as it is, on tensors without values: what autograd would save is told by its own
hooks, each storage once, weights never. Attention stands in for a fused kernel, which keeps
queries, keys, values, outputs and one number for each query.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from controlllm.expansion import Interpolator, block_parts, decoder_blocks
from controlllm.train.observe.model_parts import parts_of
from controlllm.train.step.losses import collected_divergence

__all__ = ["activation_bytes", "kept_product_bytes"]

_NAME = "controlllm_without_values"


def activation_bytes(model: PreTrainedModel, rows: int, length: int) -> int:
    """What one micro-batch of so many rows and tokens keeps, up to the logits and without them.

    The model is on the meta device, in the precision that it computes in.
    """
    if "eager" not in (model.config.get_text_config(decoder=True)._attn_implementation or ""):
        AttentionInterface.register(_NAME, _attend)
        AttentionMaskInterface.register(_NAME, _no_mask)
        model.set_attn_implementation(_NAME)
    ids = torch.ones(rows, length, dtype=torch.long, device="meta")
    mask = torch.ones_like(ids)
    kept = _Kept(model)
    model.train()
    with saved_tensors_hooks(kept.pack, lambda x: x), collected_divergence(model) as terms:
        # The output lives as long as its graph is made.
        output = model(input_ids=ids, attention_mask=mask, use_cache=False)
        if terms is not None and terms.values:
            terms.total(mask.bool())
    del output
    return kept.bytes


def kept_product_bytes(model: PreTrainedModel, positions: int, itemsize: int) -> int:
    """What selective activation checkpointing keeps beside the inputs of blocks.

    `positions` are the tokens of a micro-batch, `itemsize` is bytes of a number.
    """
    outputs = {part.name: part for part in parts_of(model) if part.passes and not part.is_head}
    width = sum(part.values for part in outputs.values())
    for layer, block in enumerate(decoder_blocks(model)):
        for part, module in block_parts(block):
            own = f"layer {layer} {part}".strip() in outputs
            if own and not isinstance(module, Interpolator):
                linears = (m for m in module.modules() if isinstance(m, nn.Linear))
                width += sum(linear.out_features for linear in linears)
    return width * positions * itemsize


class _Kept:
    """Counts what autograd saves."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        # Held on to, so that no other storage gets the same address.
        weights = [*model.parameters(), *model.buffers()]
        self._seen = {w.untyped_storage()._cdata: w.untyped_storage() for w in weights}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage
            self.bytes += storage.nbytes()
        return tensor


class _Fused(torch.autograd.Function):
    """Keeps what a fused kernel keeps; computes nothing. Shapes: B, H heads, T tokens, D width."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, tokens, _ = query.shape
        # As kernels lay it out: what reads it makes no copy.
        output = query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)
        scales = query.new_empty(query.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query, key, value, output, scales)
        return output


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    output: Tensor = _Fused.apply(query, key, value)
    return output.transpose(1, 2).contiguous(), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """A fused kernel reads no mask."""
