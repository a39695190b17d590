"""Frozen copies of models, which have weights in common with a model that trains where they can."""

import copy
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from controlllm.expansion.files.fingerprint import base_tensors

__all__ = ["frozen_copy", "share_equal"]


def frozen_copy(model: PreTrainedModel, shares: bool) -> PreTrainedModel:
    """A copy of what has not been trained yet; it may have the frozen weights in common with it."""
    kept = [p for p in model.parameters() if not p.requires_grad] if shares else []
    memo: dict[int, object] = {id(parameter): parameter for parameter in kept}
    return copy.deepcopy(model, memo).requires_grad_(False).eval()


def share_equal(model: PreTrainedModel, other: PreTrainedModel) -> None:
    """Let a frozen model have the weights of another one's base where both are equal, bit for bit.

    Args:
        model: the frozen one; changed in place. What is in common lies where `other` is.
        other: whose base does not train.
    """
    theirs = dict(base_tensors(other))
    names = {parameter: name for name, parameter in base_tensors(model)}
    same: Mapping[nn.Parameter, nn.Parameter] = {
        own: theirs[name]  # type: ignore[misc]
        for own, name in names.items()
        if _equal(own, theirs.get(name))
    }
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter in same:
                module._parameters[key] = same[parameter]


def _equal(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.to(other.device), other)  # One at a time: whole copies may not fit.
