"""Copies in 8 bits, for inference: half the bytes of bfloat16, a quarter of float32.

A row of a weight becomes whole numbers from -127 to 127 and one scale in the weight's own type.
Beside a base in few bits the copies are most of what a token reads. They do not train, and are not
saved: the sidecar on disk stays as it is.

Shapes: O rows (outputs) and I columns (inputs) of a weight.
"""

import logging
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.packages.quantizers import COPY_KINDS
from controlllm.expansion.method.block import ExpandedBlock

__all__ = ["Int8Linear", "quantize_copies"]

log = logging.getLogger(__name__)

FEW_TOKENS = 16
"""Up to so many torch's kernel for bfloat16 times int8 is the quicker way on a CPU (measured)."""


class Int8Linear(nn.Module):
    """A linear layer of a copy whose weight is held in 8 bits.

    Args:
        linear: the layer that it replaces; its bias is kept.
    """

    kind = "int8"
    weight: nn.Parameter
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_OI = linear.weight.detach()
        largest = weight_OI.float().abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        # Rounded to the type that it is kept in before it divides: codes make up for that.
        scale_O = (largest / 127).to(weight_OI.dtype).clamp_min(torch.finfo(weight_OI.dtype).tiny)
        codes_OI = (weight_OI.float() / scale_O.float()[:, None]).round().clamp(-127, 127)
        self.weight = nn.Parameter(codes_OI.to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale_O, persistent=False)
        self.bias = linear.bias
        self.training = False

    def train(self, mode: bool = True) -> Self:
        """Refuse to train (ModelError)."""
        if mode:
            raise ModelError(
                "The copies of this model are held in 8 bits (quantize_copies), for inference "
                "only: load it without the option to train it."
            )
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output (..., O) of (..., I), in the input's type."""
        rows = input.reshape(-1, self.in_features)
        if self._has_kernel(rows):
            packed: Any = torch._weight_int8pack_mm
            output = packed(rows, self.weight, self.scale.to(rows.dtype))
        else:
            output = F.linear(rows, self.weight.to(rows.dtype))
            output = output * self.scale.to(output.dtype)
        if self.bias is not None:
            output = output + self.bias.to(output.dtype)
        return output.view(*input.shape[:-1], self.out_features)

    def _has_kernel(self, rows: Tensor) -> bool:
        """Whether torch's own kernel takes it; it reads rows of other widths beyond their end."""
        if rows.device.type != "cpu" or rows.dtype is not torch.bfloat16 or rows.requires_grad:
            return False
        return 0 < rows.shape[0] <= FEW_TOKENS and self.in_features % 32 == 0

    def dequantised(self) -> Tensor:
        """The weight that it computes with, (O, I) float32."""
        return self.weight.float() * self.scale.float()[:, None]


def quantize_copies(model: nn.Module, kind: str = "int8") -> tuple[int, int]:
    """Hold the linear layers of the copies in few bits, in place.

    Norms, interpolators, expanded ends and what is no `nn.Linear` (GPT-2's `Conv1D`, stacked
    experts, layers with adapters) stay as they are.

    Args:
        model: an expanded model, in evaluation mode.
        kind: one of `COPY_KINDS`.

    Returns:
        Bytes of these layers' weights before and after.

    Raises:
        ConfigError: `kind` is unknown, or no copy has such a layer.
    """
    if kind not in COPY_KINDS:
        raise ConfigError(f"quantize_copies={kind!r}; allowed: {', '.join(COPY_KINDS)}.")
    before = after = 0
    for parent, name, linear in _linears_of_copies(model):
        made = Int8Linear(linear)
        before += linear.weight.nbytes
        after += made.weight.nbytes + made.scale.nbytes
        setattr(parent, name, made)
    if not before:
        raise ConfigError(
            f"quantize_copies={kind}, but no copy has a linear layer that could be: the model is "
            "not expanded, or its layers are of another kind; leave the option out."
        )
    log.info(
        "The copies' linear layers in %s: %s bytes instead of %s", kind, f"{after:,}", f"{before:,}"
    )
    return before, after


def _linears_of_copies(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Plain linear layers inside expanded branches: where each hangs, and its name there."""
    return [
        (parent, name, child)
        for block in model.modules()
        if isinstance(block, ExpandedBlock)
        for parent in block.expanded.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
