"""Putting the parts of several sidecars into one base, which is held once."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from controlllm.expansion.method.block import ExpandedBlock
from controlllm.expansion.method.ends import ExpandedEnd
from controlllm.expansion.method.plan import BlockPlan
from controlllm.expansion.method.several import (
    SharedBlock,
    SharedEnd,
    SharedTable,
    place_name,
    stand_alone,
)
from controlllm.expansion.surgery.anatomy import examine, module_name, own_config, replace_module
from controlllm.expansion.surgery.install import (
    Expansion,
    extend_config,
    rename_tied_keys,
    set_trainable,
    trainable_names,
)

__all__ = ["install_together", "name_alone"]

_SHARED_ENDS: dict[str, type[SharedEnd]] = {
    "embedding": SharedTable,
    "norm": SharedEnd,
    "head": SharedTable,
}


def install_together(model: PreTrainedModel, expansions: Sequence[Expansion]) -> Expansion:
    """Put the parts of several expansions of a model into it, in place; nothing of it trains.

    Args:
        model: the base, not expanded.
        expansions: what was made of it before and taken out again. Their blocks get slots in the
            KV cache one after another, and the last one's state.

    Returns:
        What is in the model now, for `remove`.
    """
    own_config(model)
    anatomy = examine(model)
    state = expansions[-1].state
    plan = [block for one in expansions for block in _moved(one, anatomy.num_layers, expansions)]
    together = Expansion(tuple(plan), state, trainable_before=trainable_names(model))
    for one in expansions:
        one.state = state
        for part in one.parts():
            part.state = state
            stand_alone(part)
            _share_configs(part)
    for layer, blocks in _by_place([one.blocks for one in expansions]).items():
        joined: Any = blocks[0] if len(blocks) == 1 else SharedBlock(blocks)
        together.blocks[layer] = anatomy.layers[layer] = joined
    _put_ends(model, together, _by_place([one.ends for one in expansions]))
    extend_config(anatomy, together)
    set_trainable(model, [])
    return together


def _share_configs(part: ExpandedBlock | ExpandedEnd) -> None:
    """Let a copy read the config of its frozen twin: that of the base has become another object."""
    twins = dict(part.pretrained.named_modules())
    for name, module in part.expanded.named_modules():
        theirs = vars(twins[name]) if name in twins else {}
        for key, value in vars(module).items():
            if isinstance(value, PreTrainedConfig) and key in theirs:
                vars(module)[key] = theirs[key]


def name_alone(name: str) -> str:
    """What a tensor of a sidecar among others would be called if that sidecar stood alone.

    >>> name_alone("model.layers.3.sidecars.at1.expanded.mlp.up_proj.weight")
    'model.layers.3.expanded.mlp.up_proj.weight'
    """
    return re.sub(r"\.sidecars\.at\d+\.", ".", name)


def _by_place(parts: Sequence[Mapping[Any, Any]]) -> dict[Any, list[Any]]:
    """For each layer or end the parts that the sidecars have there."""
    places = {place: None for mapping in parts for place in mapping}
    return {place: [m[place] for m in parts if place in m] for place in places}


def _moved(one: Expansion, num_layers: int, expansions: Sequence[Expansion]) -> list[BlockPlan]:
    """The plan of one expansion behind those before it; its copies move to these slots."""
    before = expansions[: next(i for i, other in enumerate(expansions) if other is one)]
    start = num_layers + sum(len(other.plan) for other in before)
    moved = []
    for index, block in enumerate(one.plan):
        one.blocks[block.layer].take_slot(start + index)
        moved.append(replace(block, cache_index=start + index))
    one.plan = tuple(moved)
    return moved


def _put_ends(model: PreTrainedModel, together: Expansion, ends: Mapping[str, list[Any]]) -> None:
    """Replace the ends that sidecars have; weights that were tied stay tied, in every copy."""
    if not ends:
        return
    names = [module_name(model, found[0].pretrained) for found in ends.values()]
    for kind, found in ends.items():
        joined: nn.Module = found[0] if len(found) == 1 else _SHARED_ENDS[kind](found)
        replace_module(model, found[0].pretrained, joined)
        together.ends[kind] = joined  # type: ignore[assignment]  # used as one
    count = len(ends["embedding"])
    copies = (
        ["expanded"] if count == 1 else [f"sidecars.{place_name(i)}.expanded" for i in range(count)]
    )
    together.tied_before = dict(getattr(model, "all_tied_weights_keys", {}) or {})
    rename_tied_keys(model, names, together.tied_before, ("pretrained", *copies))
