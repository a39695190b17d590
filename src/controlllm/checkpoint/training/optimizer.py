"""The optimizer's state by the names of parameters, however they are sharded.

A moment in 8 or 4 bits (`train/step/low_bit.py`) is saved as what it is made of, `.../codes` and
`.../scale`, each with one row for each row of the parameter.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from controlllm.checkpoint.training.saved import OPTIMIZER_PREFIX
from controlllm.common.errors import CheckpointError
from controlllm.common.tensors import own_part

__all__ = [
    "group_settings",
    "make_optimizer_state",
    "optimizer_state",
    "restore_groups",
    "restore_optimizer",
]

_PARTS = ("codes", "scale")
"""What of a quantised tensor is not the same in all of them (as its table of values is)."""

_FLOAT8 = (torch.float8_e4m3fn,)
"""Saved as bytes: not every reader knows them."""


def optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as tensors by name, and the rest.

    The state is a dict for each parameter, and may be in parts.

    Returns:
        `optimizer/{parameter}/{key}` -> tensor (its own memory, not a copy); and `groups` (their
        settings) and `values` (what is no tensor, by parameter).
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for name, parameter in _parameters(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors |= _stored(f"{OPTIMIZER_PREFIX}{name}/{key}", value)
            else:
                values.setdefault(name, {})[key] = value
    return tensors, {"groups": group_settings(optimizer), "values": values}


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of each group of parameters."""
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def restore_groups(optimizer: torch.optim.Optimizer, saved: Sequence[Mapping[str, Any]]) -> None:
    """Put back what `group_settings` gave.

    Raises:
        CheckpointError: the parameters are grouped in another way.
    """
    if len(saved) != len(optimizer.param_groups):
        raise CheckpointError(
            f"the checkpoint's optimizer has {len(saved)} groups of parameters, this one "
            f"{len(optimizer.param_groups)}; set the run up as it was when it was saved."
        )
    for group, settings in zip(optimizer.param_groups, saved, strict=True):
        group.update(settings)


@torch.no_grad()
def make_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Make a fresh optimizer create its state, by a step that changes nothing.

    Gradients of 0 at a learning rate of 0 change no weight. Gradients that are there stay: under
    ZeRO's offload they are buffers that the engine writes to.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters]
    for group in optimizer.param_groups:
        group["lr"] = 0.0 * group["lr"]  # A rate that is a tensor has to stay one.
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, filled: set[str], rest: Mapping[str, Any]
) -> None:
    """Put back the settings and values that `optimizer_state` gave; its tensors are filled already.

    Args:
        model: whose parameters it optimizes.
        optimizer: one with state (`make_optimizer_state`).
        filled: names of its tensors that were in the checkpoint; a parameter without any of them
            had no state.
        rest: what `optimizer_state` gave beside the tensors.

    Raises:
        CheckpointError: the parameters are grouped in another way.
    """
    restore_groups(optimizer, rest["groups"])
    own = (name for name in filled if name.startswith(OPTIMIZER_PREFIX))
    known = {name.removeprefix(OPTIMIZER_PREFIX).split("/")[0] for name in own}
    for name, parameter in _parameters(model, optimizer):
        state = optimizer.state[parameter]
        state.update(rest["values"].get(name, {}))
        if name not in known:
            del optimizer.state[parameter]


def _stored(name: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor as files can hold it: by itself, or, if it is quantised, its codes and scales."""
    local = own_part(value)
    if not hasattr(local, "__tensor_flatten__"):
        return {name: value}
    parts = {}
    for key in _PARTS:
        part = getattr(local, key)
        part = part.view(torch.uint8) if part.dtype in _FLOAT8 else part
        parts[f"{name}/{key}"] = _as_rows(part, value)
    return parts


def _as_rows(part: Tensor, like: Any) -> Tensor:
    """A part with the rows of the tensor that it belongs to; on several processes cut as that is.

    It keeps its memory: filling it fills the state.
    """
    local = own_part(like)
    rows = part.view(local.shape[0], -1)
    if local is like:
        return rows
    from torch.distributed.tensor import DTensor

    shape = torch.Size((like.shape[0], rows.shape[1]))
    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=shape, stride=rows.stride()
    )


def _parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, nn.Parameter]]:
    """What is optimized, by name."""
    optimized = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter in optimized:
            yield name, parameter
