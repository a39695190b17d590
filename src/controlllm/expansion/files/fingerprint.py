"""Which base was it? A fingerprint of a model's frozen weights."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from controlllm.common.adapters import BASE_LAYER, adapter_names
from controlllm.common.tensors import whole, whole_shape
from controlllm.expansion.files.base_files import BaseFiles
from controlllm.expansion.surgery.quantised import full_weight, quantised_kind, quantised_layers

__all__ = ["BRANCHES", "base_name", "base_tensors", "fingerprint", "remember_fingerprint"]

BRANCHES = ("pretrained", "expanded")
"""Of an expanded block, in the names of its parameters."""

CHUNK = 1 << 24
PERIOD = 8191
COARSEST = 0.25
"""Relative error of quantising beyond which a weight is taken for another one (4 bits: 0.1)."""
_REMEMBERED = "_fingerprint_before_quantising"


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

    Of a base that was quantised when it was loaded it is the fingerprint of the files that it was
    loaded from, where those can be found and are that base (`base_files`): so it is the same as
    that of the base loaded in full. Else it is that of the numbers it computes with, and says so
    by how they are quantised: `bnb_nf4:0123456789abcdef`.
    """
    tensors = sorted(base_tensors(model), key=lambda item: item[0])
    layers = {id(layer.weight): layer for _, layer in quantised_layers(model)}
    if not layers:
        return _hash(tensors)
    if (found := _of_files(model, tensors, layers)) is not None:
        return found
    kinds = sorted({str(quantised_kind(layer)) for layer in layers.values()})
    numbers = ((n, full_weight(layers[id(t)]) if id(t) in layers else t) for n, t in tensors)
    return f"{'+'.join(kinds)}:{_hash(numbers)}"


def remember_fingerprint(model: nn.Module) -> None:
    """Take the fingerprint of a base that is about to be quantised in memory."""
    vars(model)[_REMEMBERED] = fingerprint(model)


def _of_files(
    model: nn.Module, tensors: Sequence[tuple[str, Tensor]], layers: Mapping[int, nn.Module]
) -> str | None:
    """The fingerprint of a quantised base before that, of its files' tensors.

    None where these cannot be told, or the model's are not the same but for quantising.
    """
    base = getattr(model, "base", model)
    if (known := vars(base).get(_REMEMBERED)) is not None:
        return str(known)
    files = BaseFiles.of(base)
    if files is None or any(name not in files for name, _ in tensors):
        return None
    digest = hashlib.sha256()
    for name, tensor in tensors:
        saved = files.read(name).to(tensor.device)
        layer = layers.get(id(tensor))
        if layer is None:
            same = saved.shape == tensor.shape and _content(saved) == _content(tensor)
        else:
            own = full_weight(layer).float()
            same = saved.shape == own.shape and bool(
                torch.dist(own, saved.float()) <= COARSEST * torch.linalg.vector_norm(own)
            )
        if not same:
            return None
        _add(digest, name, saved)
    return digest.hexdigest()[:16]


def _hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        _add(digest, name, tensor)
    return digest.hexdigest()[:16]


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name}{tuple(whole_shape(tensor))}{_content(tensor)};".encode())


def _content(tensor: Tensor) -> int:
    """A position-weighted sum of the values' bits, wrapping in 64 bits."""
    total = 0
    for chunk in whole(tensor).detach().reshape(-1).split(CHUNK):
        # Integer tensors (quantised bases) have no bfloat16 form that keeps them apart: their own
        # values count.
        bits = chunk.to(torch.bfloat16).view(torch.int16) if chunk.is_floating_point() else chunk
        position = torch.arange(bits.numel(), device=bits.device) % PERIOD + 1
        total = (total * 31 + int((bits.long() * position).sum())) % (1 << 64)
    return total
