"""Linear layers whose weight is held in 8 or 4 bits: packed by torchao, multiplied by us.

A row of the weight becomes a row of bytes, codes first and then their scales. So FSDP2 cuts it
like any other parameter (torchao's own `Int8Tensor` cannot be cut, and its `NF4Tensor` only where
all parts of it divide by the processes), and mixed precision does not round the scales.

`int8` has 256 evenly spaced values, `nf4` 16 at the quantiles of a normal distribution; bits and
bytes of both stand in `common.packages.quantizers`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from controlllm.common.errors import ModelError
from controlllm.common.packages.quantizers import NF4_BLOCK as BLOCK
from controlllm.common.packages.quantizers import QUANTIZERS, Quantizer
from controlllm.common.quiet import require_package
from controlllm.common.registry import Registry

__all__ = ["PACKERS", "Packer", "QuantisedLinear", "register_quantizer"]

Pack = Callable[[Tensor], tuple[Tensor, Tensor | None]]
Unpack = Callable[[Tensor, Tensor | None, int], Tensor]


@dataclass(frozen=True)
class Packer:
    """How a weight is packed, and read again."""

    pack: Pack
    """A weight (out, in) -> its rows of bytes (out, bytes), and the values of its codes (256, 2),
    if they are no numbers themselves."""
    unpack: Unpack  # rows of bytes, the values of codes, in -> a weight (out, in) float32


PACKERS: Registry[Packer] = Registry("model.quantize_base")
"""Of each of `QUANTIZERS` that is made of a model that is there, by its name."""


def register_quantizer(name: str, quantizer: Quantizer, packer: Packer) -> None:
    """Register a way to quantise: its facts, and what does it (ConfigError: the name is taken)."""
    QUANTIZERS.register(name)(quantizer)
    PACKERS.register(name)(packer)


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight is packed, as one of `PACKERS` does it.

    Gradients flow through it, none to it. The bias of the layer that it replaces is kept.
    """

    table: Tensor | None

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind, packer = kind, PACKERS.get(kind)
        packed, table = packer.pack(linear.weight.detach())
        self._unpack = packer.unpack
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("table", table, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output, computed in the type that any linear layer would have here."""
        if self.weight.dtype is not torch.uint8:
            raise ModelError(
                f"a quantised weight was cast to {self.weight.dtype}: this version of torch does "
                "so under FSDP2 with mixed precision; update it, or set "
                "training.bf16=false."
            )
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        output: Tensor = _Multiply.apply(
            input, self.weight, self.table, self.in_features, self._unpack
        )
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def dequantised(self) -> Tensor:
        """The weight that it computes with, (out_features, in_features) float32."""
        return self._unpack(self.weight.detach(), self.table, self.in_features)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise ModelError(
            "the base of this model is quantised (model.quantize_base) and cannot be saved: save "
            "the sidecar, and load it onto the base as it was."
        )


class _Multiply(torch.autograd.Function):
    """x W^T; for the backward pass W is unpacked again, not kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: Tensor, table: Tensor | None, columns: int, unpack: Unpack
    ) -> Tensor:
        ctx.save_for_backward(packed, table)
        ctx.columns, ctx.unpack = columns, unpack
        return F.linear(x, unpack(packed, table, columns).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        packed, table = ctx.saved_tensors
        weight = ctx.unpack(packed, table, ctx.columns).to(grads[0].dtype)
        return grads[0] @ weight, None, None, None, None


def _pack_int8(weight: Tensor) -> tuple[Tensor, None]:
    """Symmetric, by torchao's weight-only recipe."""
    torchao = require_package("torchao.quantization", "model.quantize_base=int8")
    quantised = torchao.Int8Tensor.from_hp(weight.float(), granularity=torchao.PerRow())
    scale = quantised.scale.float().view(-1, 1).contiguous()
    return torch.cat([quantised.qdata.view(torch.uint8), scale.view(torch.uint8)], 1), None


def _unpack_int8(packed: Tensor, table: Tensor | None, columns: int) -> Tensor:
    codes, scale = packed[:, :columns].view(torch.int8), packed[:, columns:]
    return codes.float() * scale.contiguous().view(torch.float32)


def _pack_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes by torchao; the scales are not quantised again, as that would tie rows together."""
    rows, blocks = weight.shape[0], -(-weight.shape[1] // BLOCK)
    torchao = require_package("torchao.quantization", "model.quantize_base=nf4")
    weight = F.pad(weight.float(), (0, -weight.shape[1] % BLOCK)).contiguous()
    quantised = torchao.to_nf4(weight, BLOCK, blocks)
    scales = weight.view(rows, blocks, BLOCK).abs().amax(-1).to(torch.bfloat16)
    packed = [quantised.quantized_data.view(rows, -1), scales.view(torch.uint8)]
    byte = torch.arange(256, device=weight.device)
    table = torch.stack([quantised.nf4[byte >> 4], quantised.nf4[byte & 15]], 1)
    return torch.cat(packed, 1), table


def _unpack_nf4(packed: Tensor, table: Tensor | None, columns: int) -> Tensor:
    assert table is not None  # `_pack_nf4` has made it
    padded = -(-columns // BLOCK) * BLOCK
    codes, scales = packed[:, : padded // 2], packed[:, padded // 2 :]
    values = table[codes.int()].view(packed.shape[0], -1, BLOCK)
    values = values * scales.contiguous().view(torch.bfloat16).float().unsqueeze(-1)
    return values.view(packed.shape[0], padded)[:, :columns]


PACKERS.register("int8")(Packer(_pack_int8, _unpack_int8))
PACKERS.register("nf4")(Packer(_pack_nf4, _unpack_nf4))
