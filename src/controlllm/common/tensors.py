"""Tensors in parts (a `DTensor`, or what ZeRO-3 has cut), and saved ones copied into a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from controlllm.common.errors import CheckpointError
from controlllm.common.registry import few

__all__ = ["copy_tensors", "own_part", "require_same", "whole", "whole_shape"]


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered if several processes hold parts of it.

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


def copy_tensors(own: dict[str, Tensor], tensors: dict[str, Tensor], where: str) -> None:
    """Copy saved tensors into a model's own, in place.

    Raises:
        CheckpointError: if names or shapes differ; nothing is copied then.
    """
    shapes = ({name: tensor.shape for name, tensor in some.items()} for some in (own, tensors))
    require_same(next(shapes), next(shapes), where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def require_same(
    own: Mapping[str, Sequence[int]], saved: Mapping[str, Sequence[int]], where: str
) -> None:
    """Check that saved tensors have the names and shapes of a model's (CheckpointError)."""
    missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(
            f"{where} does not fit this model: missing {few(missing)}, left over {few(extra)}; "
            "set the model up as it was when it was saved."
        )
    for name, shape in own.items():
        if tuple(shape) != tuple(saved[name]):
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(saved[name])}, and in the model "
                f"{tuple(shape)}; set the model up as it was when it was saved."
            )
