"""The highest rate of a device: what MFU and HFU are a share of.

A device that is not in `PEAKS`, a CPU too, is measured by a few matrix products. One that is counts
by its bf16 rate, whatever the run computes in.
"""

import re
import time
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from controlllm.common.errors import ConfigError

__all__ = ["PEAKS", "Peak", "measured_peak", "peak_of", "peak_of_name", "required_peak"]

PEAKS: dict[str, float] = {
    # Dense bf16, by the makers' data sheets; "halved" where they count sparsity.
    # What is named first is looked for first.
    "A100": 312e12,  # NVIDIA A100 Tensor Core GPU, SXM and PCIe
    "H100 PCIe": 756e12,  # NVIDIA H100 Tensor Core GPU, first edition, halved
    "H100 NVL": 835.5e12,  # the same, NVL column, halved
    "H100": 989.4e12,  # the same, SXM column, halved
    "H200 NVL": 835.5e12,  # NVIDIA H200 Tensor Core GPU, halved
    "H200": 989.4e12,  # the same, SXM column, halved
    "B200": 2250e12,  # NVIDIA DGX B200: 8 GPUs, 36 PFLOP/s halved
    "L40S": 362e12,  # NVIDIA L40S, 733 with sparsity
    "MI300X": 1307.4e12,  # AMD Instinct MI300X, peak bfloat16
}
"""FLOP/s by device: words that all stand in the name the driver gives it."""

_LEAST_SECONDS = 0.01
_REPEATS = 3


@dataclass(frozen=True)
class Peak:
    """The highest rate of a device."""

    flops: float  # floating-point operations per second
    source: Literal["table", "measured"]  # where the number comes from


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak of a device that is here; measured once in `dtype`, where the table has none."""
    if device.type == "cuda":
        known = peak_of_name(torch.cuda.get_device_name(device))
        if known is not None:
            return Peak(known, "table")
    return Peak(measured_peak(device, dtype), "measured")


def peak_of_name(name: str) -> float | None:
    """The table's FLOP/s for a device's name; None if it has none.

    >>> peak_of_name("NVIDIA H100 80GB HBM3") / 1e12
    989.4
    >>> peak_of_name("NVIDIA GeForce RTX 4090")
    """
    for words, flops in PEAKS.items():
        if all(re.search(rf"\b{word}\b", name, re.IGNORECASE) for word in words.split()):
            return flops
    return None


def required_peak(name: str) -> float:
    """The table's FLOP/s for a device that a user names (ConfigError: it has none)."""
    known = peak_of_name(name)
    if known is None:
        raise ConfigError(f"no peak rate is known for {name!r}; known: {', '.join(PEAKS)}.")
    return known


@cache
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few products of square matrices, large enough to be timed."""
    size = 256
    seconds = _product_seconds(device, dtype, size)
    while seconds < _LEAST_SECONDS and size < 8192:
        size *= 2
        seconds = _product_seconds(device, dtype, size)
    best = min(seconds, *(_product_seconds(device, dtype, size) for _ in range(_REPEATS)))
    return float(2 * size**3 / best)


def _product_seconds(device: torch.device, dtype: torch.dtype, size: int) -> float:
    left = torch.ones(size, size, device=device, dtype=dtype)
    product = left @ left  # The first one may set something up.
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    wait(device)
    begin = time.perf_counter()
    torch.matmul(left, left, out=product)
    wait(device)
    return time.perf_counter() - begin
