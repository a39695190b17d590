"""Whose answers are they: what tells the answers of one model from those of another."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from controlllm.common.adapters import carries_base
from controlllm.expansion.files.fingerprint import base_tensors

__all__ = ["base_identity", "model_identity", "tokenizer_identity"]

CHUNK = 1 << 24


def model_identity(model: nn.Module, tokenizer: Any, alpha: float | None = None) -> dict[str, str]:
    """The identity of a model as it answers now; of one that carries no base, `base_identity`.

    Args:
        model: with all that is trained.
        tokenizer: that makes its inputs.
        alpha: the dial; None = as trained.

    Returns:
        Texts by name: weights (all bits count), dtype, tokenizer, alpha.
    """
    if not carries_base(model):
        return base_identity(model, tokenizer)
    trained = _hash(model.named_parameters())
    buffers = _hash((name, value) for name, value in model.named_buffers() if value.numel() > 1)
    every = getattr(model, "expansions", None)  # of a model with several sidecars
    expansion = repr(every or getattr(model, "expansion", None))
    told = "as trained" if alpha is None else format(alpha, "g")
    weights = hashlib.sha256(f"{trained}{buffers}{expansion}".encode()).hexdigest()[:32]
    return _identity(model, tokenizer, weights) | {"alpha": told}


def base_identity(model: nn.Module, tokenizer: Any) -> dict[str, str]:
    """The identity of the base inside a model, or of a base itself: the same for all runs on it."""
    return _identity(model, tokenizer, _hash(base_tensors(model)))


def _identity(model: nn.Module, tokenizer: Any, weights: str) -> dict[str, str]:
    dtypes = {str(p.dtype) for _, p in base_tensors(model) if p.is_floating_point()}
    return {
        "weights": weights,
        "dtype": "+".join(sorted(dtypes)).replace("torch.", ""),
        "tokenizer": tokenizer_identity(tokenizer),
    }


def tokenizer_identity(tokenizer: Any) -> str:
    """Its vocabulary, rules and special tokens; padding and templates are no part of it."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        rules: Any = sorted(tokenizer.get_vocab().items())
    else:
        rules = json.loads(fast.to_str())
        rules.pop("padding", None)
        rules.pop("truncation", None)
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    special.pop("pad_token", None)
    text = json.dumps([rules, special], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@torch.no_grad()
def _hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype};".encode())
        for chunk in tensor.detach().reshape(-1).split(CHUNK):
            digest.update(chunk.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
