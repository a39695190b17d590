"""Which base was it? A fingerprint of a model's frozen weights."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from controlllm.common.tensors import whole

__all__ = ["base_tensors", "fingerprint"]

CHUNK = 1 << 24
PERIOD = 8191


def base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The base's own parameters with the base's own names, whether `model` is expanded or not.

    Tied weights come once. Trained parts of an expanded model do not come.
    """
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if "interpolator" in parts or "expanded" in parts:
            continue
        if hasattr(model, "_expansion"):
            parts = [part for part in parts[1:] if part != "pretrained"]
        yield ".".join(parts), parameter


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and contents of the base's parameters, as 16 hex digits.

    Every value counts, rounded to bfloat16: a base loaded in float32 and the same base loaded in
    bfloat16 agree. A change below that rounding is not seen. Runs where the tensors are, in chunks.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(base_tensors(model), key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{_content(tensor)};".encode())
    return digest.hexdigest()[:16]


def _content(tensor: Tensor) -> int:
    """A position-weighted sum of the values' bits, wrapping in 64 bits."""
    total = 0
    for chunk in whole(tensor.detach()).reshape(-1).split(CHUNK):
        # Integer tensors (quantised bases) have no bfloat16 form that keeps them apart: their own
        # values count.
        bits = chunk.to(torch.bfloat16).view(torch.int16) if chunk.is_floating_point() else chunk
        position = torch.arange(bits.numel(), device=bits.device) % PERIOD + 1
        total = (total * 31 + int((bits.long() * position).sum())) % (1 << 64)
    return total
