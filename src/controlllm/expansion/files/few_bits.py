"""Rows of numbers in 1, 2 or 4 bits each, with one scale a row.

A code c of b bits stands for the odd number 2c - (2^b - 1), times the scale of its row:

    1 bit:  -1 +1        2 bits:  -3 -1 +1 +3        4 bits:  -15 -13 ... +13 +15

So the best scale of 1 bit is the mean magnitude of the row. Of more bits several starting scales
are tried; of each the codes are taken, and the scale that fits these best in least squares. What
counts is the squared error with the scale as it is stored: in bfloat16, which has the range of
float32 (differences of a weight are often below what float16 can hold), and whose rounding, 0.2 %
at most, is small beside that of the codes.

Shapes: C numbers of a row, K = ceil(bits C / 8) bytes; in front any number of dimensions.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from controlllm.common.errors import CheckpointError

__all__ = ["BITS", "SCALES", "code_bytes", "pack", "packed_bytes", "unpack"]

SCALES = torch.bfloat16
"""What scales are stored in."""

_STARTS = {1: (1.0,), 2: (0.35, 0.42, 0.5, 0.6, 0.75), 4: (0.11, 0.14, 0.17, 0.21, 0.28)}
"""Scales that are tried, as shares of a row's root mean square; 0.50 and 0.17 are best for normally
distributed numbers, smaller ones for evenly spread, larger ones for heavy-tailed numbers."""
BITS = tuple(_STARTS)
"""How many bits a number can have."""


def pack(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes (..., K) in uint8 and scales (...) in bfloat16 of numbers (..., C).

    The lowest bits of a byte are those of the first number. A row of zeros has scale 0.

    Raises:
        CheckpointError: a value is not finite.
    """
    rows = values.float().reshape(-1, values.shape[-1])
    highest = rows.abs().amax(-1, keepdim=True)
    if not torch.isfinite(highest).all():
        raise CheckpointError(
            f"numbers that are infinite or no numbers cannot be written in {bits} bits."
        )
    unit = rows / highest.where(highest > 0, 1)  # squares of it do not overflow
    rms = unit.square().mean(-1, keepdim=True).sqrt()
    best, scales = torch.zeros_like(unit), torch.zeros_like(rms)
    least = torch.full_like(rms, torch.inf)
    for start in _STARTS[bits]:
        odd = _nearest(unit, start * rms, bits)
        scale = (unit * odd).sum(-1, keepdim=True) / odd.square().sum(-1, keepdim=True)
        scale = (scale * highest).to(SCALES).float()
        error = (
            (unit - odd * (scale / highest.where(highest > 0, 1))).square().sum(-1, keepdim=True)
        )
        better = error < least
        best, scales = best.where(~better, odd), scales.where(~better, scale)
        least = least.where(~better, error)
    codes = ((best + 2**bits - 1) / 2).to(torch.uint8)
    leading = values.shape[:-1]
    return _join(codes, bits).reshape(*leading, -1), scales.to(SCALES).reshape(leading)


def unpack(codes: Tensor, scales: Tensor, bits: int, columns: int) -> Tensor:
    """The numbers (..., C) in float32 of codes (..., K) and scales (...)."""
    apart = (codes[..., None] >> _shifts(bits, codes.device)) & (2**bits - 1)
    odd = apart.flatten(-2)[..., :columns].float() * 2 - (2**bits - 1)
    return odd * scales.float()[..., None]


def code_bytes(columns: int, bits: int) -> int:
    """K, the bytes of the codes of one row."""
    return -(-columns * bits // 8)


def packed_bytes(shape: Sequence[int], bits: int) -> int:
    """The bytes of codes and scales of a tensor.

    >>> packed_bytes((64, 4096), 1)
    32896
    """
    return prod(shape[:-1]) * (code_bytes(shape[-1], bits) + SCALES.itemsize)


def _nearest(unit: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest odd numbers; of a row of zeros any."""
    most = 2**bits - 1
    scale = scale.where(scale > 0, 1)
    return (torch.floor(unit / (2 * scale)) * 2 + 1).clamp(-most, most)


def _join(codes: Tensor, bits: int) -> Tensor:
    """Codes (R, C), one a byte, as bytes (R, K)."""
    rows, columns = codes.shape
    room = codes.new_zeros(rows, code_bytes(columns, bits) * (8 // bits))
    room[:, :columns] = codes
    apart = room.reshape(rows, -1, 8 // bits) << _shifts(bits, codes.device)
    return apart.sum(-1, dtype=torch.uint8)


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)
