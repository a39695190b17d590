"""Tensors that lie in parts on several processes."""

from torch import Tensor

__all__ = ["own_part", "whole"]


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one, whether it is in parts on several processes (a `DTensor`) or not.

    Collective if it is; any other is given back as it is.
    """
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor in parts (a `DTensor`); any other as it is."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()
