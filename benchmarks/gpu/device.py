"""The device that is measured: a GPU, or in a dry run this CPU."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from data_rows import machine, memory, reset_peak

__all__ = ["GIB", "Device", "about"]

GIB = 2**30
WARM_UP = 3
WANTED = ("flash_attn", "liger_kernel", "peft", "triton")
"""Packages that parts use where they are there."""


def about() -> dict[str, Any]:
    """The machine, its GPU if there is one, and which packages are not there."""
    from importlib.util import find_spec

    found = machine()
    found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_gib"] = torch.cuda.mem_get_info()[1] / GIB
    found["missing"] = [name for name in WANTED if find_spec(name) is None]
    return found


class Device:
    """A device with its clock and its memory.

    Args:
        name: `cuda` or `cpu`.
    """

    def __init__(self, name: str) -> None:
        self.torch = torch.device(name)
        self.is_gpu = self.torch.type == "cuda"
        self._before = 0.0

    def now(self) -> float:
        """Seconds of the wall, once the device has done all that it was given."""
        if self.is_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def clear(self) -> None:
        """Give back what nobody holds, and let the peak begin anew."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak()
            self._before = memory("VmRSS")

    def peak_gib(self) -> float:
        """The most since `clear`: what tensors took of a GPU, or what this process took more."""
        if self.is_gpu:
            return torch.cuda.max_memory_allocated() / GIB
        return max(memory("VmHWM") - self._before, 0.0) / 1024

    def total_gib(self) -> float | None:
        """Memory of the GPU; None on a CPU."""
        return torch.cuda.mem_get_info()[1] / GIB if self.is_gpu else None

    def seconds(self, call: Callable[[], Any], times: int) -> float:
        """The median over so many calls, after a few that do not count."""
        found = []
        for _ in range(WARM_UP + times):
            begin = self.now()
            call()
            found.append(self.now() - begin)
        return statistics.median(found[WARM_UP:])

    def copy_rate(self, size: int) -> float:
        """Bytes per second of a copy of `size` bytes within the device, read and written."""
        source = torch.ones(size, dtype=torch.uint8, device=self.torch)
        target = torch.empty_like(source)
        return 2 * size / self.seconds(lambda: target.copy_(source), 10)
