"""FSDP2 over a model: which parts are units, and how they are gathered."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from controlllm.expansion import Interpolator, block_parts, decoder_blocks
from controlllm.train.parallel.tensor import block_plan, cut_block
from controlllm.train.parallel.world import World

__all__ = ["shard_model", "sharding_units"]


def shard_model(model: nn.Module, world: World, dtype: torch.dtype | None = None) -> None:
    """Shard a model in place; with a single process nothing is changed.

    It is on its device, in the precision that its weights are kept in. They are gathered in `dtype`
    and computed with in it (None = as they are kept); gradients are added up in float32.

    Raises:
        ModelError: the model's blocks cannot be found.
    """
    if world.mesh is None:
        return
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    settings = _settings(world, dtype)
    units = list(sharding_units(model))
    if world.tensor_mesh is not None:
        config = model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
        plan = block_plan(config, world.config.tensor_size)
        for unit in units:
            if not isinstance(unit, Interpolator):
                cut_block(unit, world.tensor_mesh, plan)
    for unit in units:
        fully_shard(unit, **settings)
    # The root holds the rest (embeddings, norm, head), which its own forward uses until its end.
    fully_shard(model, **{**settings, "reshard_after_forward": False})
    for unit in units:
        # What hands its input through needs no weights, and nothing to be gathered.
        if isinstance(unit, Interpolator) and type(unit).target is not Interpolator.target:
            register_fsdp_forward_method(unit, "target")
    _prefetch(units, world.config.prefetch)


def sharding_units(model: nn.Module) -> Iterator[nn.Module]:
    """The parts that are gathered and given back together, in the order of the forward pass.

    Frozen block, expanded blocks and interpolators are each one; of a model that is not expanded,
    each block.
    """
    for block in decoder_blocks(model):
        yield from (part for _, part in block_parts(block))


def _settings(world: World, dtype: torch.dtype | None) -> dict[str, Any]:
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    config = world.config
    settings: dict[str, Any] = {
        "mesh": world.sharding_mesh,
        "reshard_after_forward": config.reshard_after_forward,
    }
    if dtype is not None:
        settings["mp_policy"] = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    if config.cpu_offload:
        settings["offload_policy"] = CPUOffloadPolicy()
    return settings


def _prefetch(units: list[nn.Module], count: int) -> None:
    """Gather the next units while one computes, forward and backward."""
    if not count:
        return
    for place, unit in enumerate(units):
        if following := units[place + 1 : place + 1 + count]:
            unit.set_modules_to_forward_prefetch(following)  # type: ignore[operator]
        if before := units[max(0, place - count) : place]:
            unit.set_modules_to_backward_prefetch(before[::-1])  # type: ignore[operator]
