"""A frozen base in 8 or 4 bits: less memory for what does not train.

```
frozen linear layer --> torchao quantises its weight --> packed rows --> `QuantisedLinear`
```
A row of the weight becomes a row of bytes, codes first and then their scales. So FSDP2 cuts it
like any other parameter (torchao's own `Int8Tensor` cannot be cut, and its `NF4Tensor` only where
all parts of it divide by the processes), and mixed precision does not round the scales.

| `model.quantize_base` | a weight takes | scales |
|---|---|---|
| `int8` | 8 bits, evenly spaced | one of 32 bits for each row |
| `nf4` | 4 bits, at the quantiles of a normal distribution | one of 16 bits for each block of 64 |

Kinds that begin with `bnb_` are layers of bitsandbytes (`common.bitsandbytes`): where a run loads
its base from files they are quantised as they are read, here only those of a model in memory.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.packages.bitsandbytes import (
    BNB_KINDS,
    bnb_linear,
    settle_bnb_linear,
    stored_bytes,
)
from controlllm.common.packages.torchao import require_torchao
from controlllm.common.registry import check_choice
from controlllm.expansion import ControlLLMForCausalLM
from controlllm.expansion.files.fingerprint import remember_fingerprint
from controlllm.expansion.files.sidecar import base_fingerprint
from controlllm.expansion.hub.decoder import decoder_blocks
from controlllm.expansion.method.block import ExpandedBlock
from controlllm.expansion.surgery.quantised import quantised_kind, quantised_layers
from controlllm.train.config.parallel_config import ParallelConfig
from controlllm.train.config.support import check_quantised

__all__ = [
    "QuantisedLinear",
    "check_shared",
    "frozen_linears",
    "packed_columns",
    "quantise_by_bnb",
    "quantize_base",
]

log = logging.getLogger(__name__)

BLOCK = 64
"""Neighbours that share a scale in nf4."""


def quantize_base(model: nn.Module, kind: str) -> None:
    """Quantise the linear layers of an expanded model's frozen blocks, in place.

    Expanded blocks, interpolators, embeddings, norms and the head stay as they are. Which base it
    is (its fingerprint) is noted before.

    Args:
        model: an expanded model in one piece, not in parts on several processes.
        kind: `int8`, `nf4`, or one of bitsandbytes (`quantise_by_bnb`).

    Raises:
        ConfigError: the package is not installed, or there is no frozen linear layer.
    """
    check_choice("model.quantize_base", kind, [*_PACKERS, *BNB_KINDS])
    if kind in BNB_KINDS and isinstance(model, ControlLLMForCausalLM):
        quantise_by_bnb(model, kind, model.dtype)
        return
    if known := sorted({str(quantised_kind(layer)) for _, layer in quantised_layers(model)}):
        raise ConfigError(
            f"model.quantize_base={kind}, but this base is {', '.join(known)} already; load it "
            "unquantised, or leave the setting out."
        )
    layers = list(frozen_linears(model)) if isinstance(model, ControlLLMForCausalLM) else []
    if not layers or not isinstance(model, ControlLLMForCausalLM):
        raise _nothing_to_quantise(kind)
    base_fingerprint(model)
    model.config.base["quantised"] = [kind]
    before = after = 0
    for parent, name, linear in layers:
        quantised = QuantisedLinear(linear, *_PACKERS[kind](linear.weight.detach()))
        setattr(parent, name, quantised)
        before, after = before + linear.weight.nbytes, after + quantised.weight.nbytes
    log.info(
        "The base's frozen blocks in %s: %d linear layers, %s bytes instead of %s",
        *(kind, len(layers), f"{after:,}", f"{before:,}"),
    )


def quantise_by_bnb(model: nn.Module, kind: str, compute_dtype: torch.dtype) -> None:
    """Quantise a base by bitsandbytes, in place; layers that were loaded so stay as they are.

    Where it came with weights in full, its linear layers in blocks become the same as those that
    `from_pretrained` would have made; of an expanded model, those of the frozen blocks.

    Args:
        model: expanded or not.
        kind: one of `BNB_KINDS`.
        compute_dtype: what 4-bit layers shall compute in.

    Raises:
        ConfigError: bitsandbytes is not installed, or no layer can be quantised, or some are
            quantised in another way already.
    """
    layers = [layer for _, layer in quantised_layers(model)]
    if others := sorted({str(quantised_kind(layer)) for layer in layers} - {kind}):
        raise ConfigError(
            f"model.quantize_base={kind}, but this base is {', '.join(others)} already; leave the "
            "setting out."
        )
    if not layers:
        if isinstance(model, ControlLLMForCausalLM):
            found = list(frozen_linears(model))
        else:
            found = list(_linears(decoder_blocks(model)))
        if not found:
            raise _nothing_to_quantise(kind)
        if isinstance(model, ControlLLMForCausalLM):
            base_fingerprint(model)
        else:
            remember_fingerprint(model)
        for parent, name, linear in found:
            setattr(parent, name, bnb_linear(linear, kind, compute_dtype))
        layers = [layer for _, layer in quantised_layers(model)]
    for layer in layers:
        settle_bnb_linear(layer, compute_dtype)
    log.info(
        "The base in %s: %d linear layers, %s bytes",
        *(kind, len(layers), f"{sum(map(stored_bytes, layers)):,}"),
    )


def check_shared(model: nn.Module, parallel: ParallelConfig | None) -> None:
    """Refuse a quantised base that a strategy cannot share; note which base it is before it does.

    Args:
        model: the model that will train, in one piece.
        parallel: how processes will share it; None for one process.

    Raises:
        ConfigError: it cannot.
    """
    kinds = {str(quantised_kind(layer)) for _, layer in quantised_layers(model)}
    if not kinds:
        return
    if isinstance(model, ControlLLMForCausalLM):
        base_fingerprint(model)
        model.config.base["quantised"] = sorted(kinds)
    if parallel is None:
        return
    if parallel.tensor_size > 1:
        raise ConfigError(
            f"The base is quantised as {', '.join(sorted(kinds))}, and parallel.tensor_size="
            f"{parallel.tensor_size} would cut its packed rows; set it to 1, or load the base "
            "unquantised."
        )
    check_quantised(kinds, parallel.strategy)


def _nothing_to_quantise(kind: str) -> ConfigError:
    return ConfigError(
        f"model.quantize_base={kind}, but the model has no frozen linear layer in a block; "
        "leave it out, or freeze the blocks (expansion.freeze)."
    )


def _linears(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Plain linear layers, where they hang, and their names there."""
    for parent in list(root.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear:
                yield parent, name, module


def frozen_linears(model: ControlLLMForCausalLM) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """What is quantised: each linear layer of a frozen block, where it hangs, and its name there.

    Not what only looks like one (a subclass, GPT-2's `Conv1D`, stacked experts).
    """
    for block in decoder_blocks(model):
        frozen = block.pretrained if isinstance(block, ExpandedBlock) else block
        for parent in list(frozen.modules()):
            for name, module in list(parent.named_children()):
                if type(module) is nn.Linear and not module.weight.requires_grad:
                    yield parent, name, module


def packed_columns(columns: int, kind: str) -> int:
    """Bytes of a row of a quantised weight: codes, then scales.

    >>> packed_columns(4096, "int8"), packed_columns(4096, "nf4")
    (4100, 2176)
    """
    if kind == "int8":
        return columns + 4
    blocks = -(-columns // BLOCK)
    return blocks * (BLOCK // 2 + 2)


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight is packed; gradients flow through it, none to it.

    Args:
        linear: the layer it takes the place of; its bias is kept.
        packed: (out_features, bytes) uint8.
        table: the two values of each byte, (256, 2); None where a byte is one value.
    """

    table: Tensor | None

    def __init__(self, linear: nn.Linear, packed: Tensor, table: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind = "int8" if table is None else "nf4"
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("table", table, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output, computed in the type that any linear layer would have here."""
        if self.weight.dtype is not torch.uint8:
            raise ModelError(
                f"a quantised weight was cast to {self.weight.dtype}: this version of torch does "
                "so under FSDP2 with mixed precision; update it, or set "
                "training.mixed_precision=no."
            )
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        output: Tensor = _Multiply.apply(input, self.weight, self.table, self.in_features)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def dequantised(self) -> Tensor:
        """The weight that it computes with, (out_features, in_features) float32."""
        return _unpack(self.weight.detach(), self.table, self.in_features)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise ModelError(
            "the base of this model is quantised (model.quantize_base), and is not saved so: save "
            "the sidecar, and load it onto the base as it was."
        )


class _Multiply(torch.autograd.Function):
    """x W^T; for the backward pass W is unpacked again, not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, table: Tensor | None, columns: int) -> Tensor:
        ctx.save_for_backward(packed, table)
        ctx.columns = columns
        return F.linear(x, _unpack(packed, table, columns).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        packed, table = ctx.saved_tensors
        return grads[0] @ _unpack(packed, table, ctx.columns).to(grads[0].dtype), None, None, None


def _unpack(packed: Tensor, table: Tensor | None, columns: int) -> Tensor:
    """Rows of bytes to rows of `columns` float32 values."""
    if table is None:
        codes, scale = packed[:, :columns].view(torch.int8), packed[:, columns:]
        return codes.float() * scale.contiguous().view(torch.float32)
    padded = -(-columns // BLOCK) * BLOCK
    codes, scales = packed[:, : padded // 2], packed[:, padded // 2 :]
    values = table[codes.int()].view(packed.shape[0], -1, BLOCK)
    values = values * scales.contiguous().view(torch.bfloat16).float().unsqueeze(-1)
    return values.view(packed.shape[0], padded)[:, :columns]


def _pack_int8(weight: Tensor) -> tuple[Tensor, None]:
    """Symmetric, by torchao's weight-only recipe."""
    torchao = require_torchao("torchao.quantization", "model.quantize_base=int8")
    quantised = torchao.Int8Tensor.from_hp(weight.float(), granularity=torchao.PerRow())
    scale = quantised.scale.float().view(-1, 1).contiguous()
    return torch.cat([quantised.qdata.view(torch.uint8), scale.view(torch.uint8)], 1), None


def _pack_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes by torchao; the scales are not quantised again, as that would tie rows together."""
    rows, blocks = weight.shape[0], -(-weight.shape[1] // BLOCK)
    torchao = require_torchao("torchao.quantization", "model.quantize_base=nf4")
    weight = F.pad(weight.float(), (0, -weight.shape[1] % BLOCK)).contiguous()
    quantised = torchao.to_nf4(weight, BLOCK, blocks)
    scales = weight.view(rows, blocks, BLOCK).abs().amax(-1).to(torch.bfloat16)
    packed = [quantised.quantized_data.view(rows, -1), scales.view(torch.uint8)]
    byte = torch.arange(256, device=weight.device)
    table = torch.stack([quantised.nf4[byte >> 4], quantised.nf4[byte & 15]], 1)
    return torch.cat(packed, 1), table


_PACKERS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor | None]]] = {
    "int8": _pack_int8,
    "nf4": _pack_nf4,
}
