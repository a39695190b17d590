"""What does the cross-entropy over a large vocabulary cost in bf16, at once, in chunks, fused?

The ways of `benchmarks/large_vocabulary.py` and Liger's kernel, forward and backward; the loss and
the gradient of the hidden states beside those of float32 logits, as relative errors.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import large_vocabulary
import torch
from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import SIZES

__all__ = ["run"]

CHUNK, REPEATS = 2048, 5


def run(options: argparse.Namespace, emit: Callable[[dict[str, Any]], None]) -> None:
    """Every way, with a frozen head and a trained one."""
    device, size = Device(options.device), SIZES[options.size]
    for trained in (False, True):
        torch.manual_seed(0)
        model = large_vocabulary.Head(size.width, size.vocabulary).to(device.torch)
        model.requires_grad_(trained)
        labels = torch.randint(size.vocabulary, (1, size.rows * size.length), device=device.torch)
        hidden = torch.randn(*labels.shape, size.width, device=device.torch, requires_grad=True)
        wanted = computed("all logits", hidden, model, labels)
        model, hidden = model.bfloat16(), hidden.detach().bfloat16().requires_grad_()
        for way in (*large_vocabulary.WAYS, "Liger"):
            row = {"way": way, "head": "trained" if trained else "frozen"}
            if note := lacking(way, device):
                emit({**row, "note": note})
                continue
            device.clear()
            try:
                call = partial(computed, way, hidden, model, labels)
                found, seconds = call(), device.seconds(call, REPEATS)
            except Exception as error:  # Whatever it is, the other ways are to be measured.
                emit({**row, "note": f"failed: {type(error).__name__}: {error}"})
                continue
            errors = [off(*pair) for pair in zip(found, wanted, strict=True)]
            names = ("loss_error", "gradient_error")
            measured = {"seconds": seconds, "peak_gib": device.peak_gib()}
            emit(row | measured | dict(zip(names, errors, strict=True)))


def lacking(way: str, device: Device) -> str | None:
    """Why a way cannot run here."""
    if way == "torch" and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        return f"left out: torch {torch.__version__} has no linear_cross_entropy (2.13 has)"
    if way == "Liger" and find_spec("liger_kernel") is None:
        return "left out: liger_kernel is not installed"
    if way == "Liger" and not device.is_gpu:
        return "left out: Triton compiles for GPUs only"
    return None


def computed(way: str, hidden: Any, model: Any, labels: Any) -> tuple[Any, Any]:
    """The loss of a way, and the gradient of the hidden states; both in float32."""
    hidden.grad = None
    model.zero_grad()
    if way == "Liger":
        from controlllm.train.step.liger import fused_cross_entropy_sum

        loss = fused_cross_entropy_sum(hidden, model, labels)
    else:
        loss = large_vocabulary.loss_by(way, hidden, model, labels, CHUNK)
    loss.backward()
    return loss.detach().float(), hidden.grad.float()


def off(found: Any, wanted: Any) -> float:
    """How far one is from the other, as a share of it."""
    return float((found - wanted).norm() / wanted.norm())
