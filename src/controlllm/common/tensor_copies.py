"""Saved tensors into a model's own: the same names and shapes, or nothing is copied."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from controlllm.common.errors import CheckpointError

__all__ = ["copy_tensors", "require_same"]


def copy_tensors(own: dict[str, Tensor], tensors: dict[str, Tensor], where: str) -> None:
    """Copy saved tensors into a model's own, in place.

    Args:
        own: the model's tensors by name.
        tensors: the saved ones.
        where: what they were read from, for messages.

    Raises:
        CheckpointError: if names or shapes differ; nothing is copied then.
    """
    require_same(_shapes(own), _shapes(tensors), where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def require_same(
    own: Mapping[str, Sequence[int]], saved: Mapping[str, Sequence[int]], where: str
) -> None:
    """Check that saved tensors are those of a model.

    Args:
        own: the model's shapes by name.
        saved: those of the saved tensors.
        where: what they were read from, for messages.

    Raises:
        CheckpointError: if names or shapes differ.
    """
    missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(
            f"{where} does not fit this model: missing {_few(missing)}, left over {_few(extra)}; "
            "set the model up as it was when it was saved."
        )
    for name, shape in own.items():
        if tuple(shape) != tuple(saved[name]):
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(saved[name])}, the model {tuple(shape)}; set "
                "the model up as it was when it was saved."
            )


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _few(names: list[str]) -> str:
    """The first names of a list, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more or "none"
