"""Which base was it? A fingerprint of a model's frozen weights."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from controlllm.common.adapters import BASE_LAYER, adapter_names
from controlllm.common.tensors import whole

__all__ = ["BRANCHES", "base_name", "base_tensors", "fingerprint"]

BRANCHES = ("pretrained", "expanded")
"""Of an expanded block, in the names of its parameters."""

CHUNK = 1 << 24
PERIOD = 8191


def base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The base's own parameters with the base's own names, whether `model` is expanded or not.

    Tied weights come once. Trained parts of an expanded model and adapters do not come.
    """
    adapters = adapter_names(model)
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if name not in adapters and "interpolator" not in parts and "expanded" not in parts:
            inside = adapters or hasattr(model, "_expansion")
            yield base_name(name) if inside else name, parameter


def base_name(name: str) -> str:
    """What the base calls a parameter of an expanded model, or one with adapters.

    >>> base_name("base.model.layers.3.expanded.mlp.up_proj.weight")
    'model.layers.3.mlp.up_proj.weight'
    """
    parts = name.removeprefix("base.").split(".")
    return ".".join(part for part in parts if part not in (*BRANCHES, BASE_LAYER))


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
