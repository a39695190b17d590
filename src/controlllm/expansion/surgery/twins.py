"""What trained copies began as: the frozen weights beside them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from controlllm.common.errors import ModelError
from controlllm.expansion.method.block import StackBlock
from controlllm.expansion.surgery.anatomy import residual_projections
from controlllm.expansion.surgery.quantised import quantised_layers
from controlllm.expansion.surgery.sidecars import name_alone

__all__ = ["twins"]


def twins(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The frozen weights that trained matrices began as, by the names of those.

    The same weight of the pretrained branch; zeros for what a stacked block has zero at the start.
    A grown table has more rows than its twin. Vectors, weights of integers, and what has no twin or
    one that trains, too, are passed over.

    Args:
        model: the expanded model.
        tensors: its trained tensors (`sidecar_tensors`).

    Raises:
        ModelError: the base is quantised, so that what a copy began as is not at hand.
    """
    # Where several sidecars stand at one place, the newest is the last.
    named = model.named_parameters(remove_duplicate=False)
    own = {name_alone(name): parameter for name, parameter in named}
    names = model.expansion.residual_projections
    zeroed = {
        id(parameter)
        for block in model.blocks.values()
        if isinstance(block, StackBlock)
        for parameter in residual_projections(block.expanded, names)
    }
    quantised = {id(layer.weight) for _, layer in quantised_layers(model)}
    found = {}
    for name, tensor in tensors.items():
        parts = f"base.{name}".split(".")
        twin = own.get(".".join("pretrained" if part == "expanded" else part for part in parts))
        if twin is None or "expanded" not in parts or twin.requires_grad:
            continue
        if id(twin) in quantised:
            raise ModelError(
                "the base of this model is quantised, and a sidecar in few bits holds differences "
                "from the weights as they were: load the base as it was, without quantising it."
            )
        if tensor.ndim >= 2 and tensor.is_floating_point() and twin.shape[1:] == tensor.shape[1:]:
            zero = twin.new_zeros(()).expand(twin.shape)
            found[name] = zero if id(own[f"base.{name}"]) in zeroed else twin.detach()
    return found
