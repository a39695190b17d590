"""Tensors that lie in parts on several processes."""

from torch import Tensor

__all__ = ["whole"]


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one, whether it is in parts on several processes (a `DTensor`) or not.

    Collective if it is; any other is given back as it is.
    """
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
