"""Tensors that lie in parts on several processes: a `DTensor`, or what ZeRO-3 has cut."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["own_part", "whole", "whole_shape"]


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one, whether it is in parts on several processes or not.

    Collective if it is; any other is given back as it is. What is put together from a parameter of
    ZeRO-3 has no gradient.
    """
    if hasattr(tensor, "ds_id"):
        return _gather(tensor)
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of the whole; what ZeRO-3 has cut has no elements while it is not in use."""
    shape: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return shape


@torch.no_grad()
def _gather(parameter: Any) -> Tensor:
    """By the methods that DeepSpeed has given to a parameter of ZeRO-3."""
    kept = parameter.ds_status.name == "AVAILABLE"  # A small one is never cut.
    if not kept:
        parameter.all_gather(param_list=[parameter])
    copy: Tensor = parameter.detach().clone()
    if not kept:
        parameter.partition(param_list=[parameter], has_been_updated=False)
    return copy


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor in parts (a `DTensor`); any other as it is."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()
