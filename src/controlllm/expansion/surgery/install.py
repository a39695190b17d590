"""Putting the expanded parts into a model, and taking them out again.

Everything that can be refused is refused before anything is changed.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from controlllm.common.errors import ModelError
from controlllm.expansion.method.block import ExpandedBlock
from controlllm.expansion.method.ends import ExpandedEnd
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.plan import BlockPlan, extended_lists, plan_blocks
from controlllm.expansion.method.slots import Slots
from controlllm.expansion.method.state import AlignmentState
from controlllm.expansion.surgery.anatomy import (
    Anatomy,
    examine,
    module_name,
    own_config,
    replace_module,
)
from controlllm.expansion.surgery.checks import check_parts, refuse_expanded
from controlllm.expansion.surgery.parts import make_block, make_ends
from controlllm.expansion.surgery.quantised import settle

__all__ = [
    "Expansion",
    "expanded_list",
    "extend_config",
    "install",
    "remove",
    "rename_tied_keys",
    "set_trainable",
    "trainable_names",
]


@dataclass
class Expansion:
    """What was put into a model, and what is needed to take it out again.

    Attributes:
        plan: the expanded positions.
        blocks: the expanded blocks by layer.
        ends: the expanded ends by kind ("embedding", "norm", "head"); empty without `expand_ends`.
        state: what they share during a forward pass.
        config_before: the decoder config's values that were changed, as they were.
        trainable_before: names of the base's parameters that required gradients.
        trainable: names of the parameters that require gradients now.
        tied_before: the base's map of tied weights.
    """

    plan: tuple[BlockPlan, ...]
    state: AlignmentState
    blocks: dict[int, ExpandedBlock] = field(default_factory=dict)
    ends: dict[str, ExpandedEnd] = field(default_factory=dict)
    config_before: dict[str, Any] = field(default_factory=dict)
    trainable_before: list[str] = field(default_factory=list)
    trainable: list[str] = field(default_factory=list)
    tied_before: dict[str, str] = field(default_factory=dict)

    @classmethod
    def planned(cls, plan: tuple[BlockPlan, ...], config: ExpansionConfig) -> "Expansion":
        """An expansion of which no part has been made yet."""
        concat = sum(block.kind == "concat" for block in plan)
        state = AlignmentState(num_terms=concat, divergence_tokens=config.divergence_tokens)
        return cls(plan, state)

    def slots(self) -> Slots:
        """What a forward pass writes into its KV cache now, at the expanded positions."""
        return frozenset().union(*(block.slots for block in self.blocks.values()))

    def parts(self) -> list[ExpandedBlock | ExpandedEnd]:
        """All expanded blocks and ends."""
        return [*self.blocks.values(), *self.ends.values()]


def install(model: PreTrainedModel, config: ExpansionConfig) -> Expansion:
    """Expand `model` in place; its blocks become the frozen branches.

    Raises:
        ModelError, ConfigError: if it cannot be expanded so; the model is then untouched.
    """
    refuse_expanded(model)
    anatomy = examine(model)
    plan = plan_blocks(config, anatomy.num_layers)
    check_parts(model, anatomy, plan, config)
    own_config(model)
    anatomy = examine(model)
    expansion = Expansion.planned(plan, config)
    expansion.trainable_before = trainable_names(model)
    settle(model)
    _freeze(model, anatomy, config)
    for block in plan:
        expanded = make_block(anatomy, block, config, expansion.state)
        expansion.blocks[block.layer] = expanded
        anatomy.layers[block.layer] = expanded
    if config.expand_ends:
        _expand_ends(model, anatomy, config, expansion)
    extend_config(anatomy, expansion)
    expansion.trainable = trainable_names(model)
    return expansion


def remove(model: PreTrainedModel, expansion: Expansion) -> None:
    """Undo `install`: the model is again what it was, its frozen tensors untouched."""
    layers = expanded_list(model, expansion)
    for layer, block in expansion.blocks.items():
        layers[layer] = block.pretrained
    for end in expansion.ends.values():
        replace_module(model, end, end.pretrained)
    if expansion.ends:
        vars(model).pop("_tied_weights_keys", None)
        model.all_tied_weights_keys = expansion.tied_before
    config = model.get_decoder().config
    for key, value in expansion.config_before.items():
        setattr(config, key, value)
    set_trainable(model, expansion.trainable_before)


def expanded_list(model: nn.Module, expansion: Expansion) -> nn.ModuleList:
    """The list of blocks of a model that is expanded already.

    Raises:
        ModelError: its blocks no longer lie in a list.
    """
    block = next(iter(expansion.blocks.values()))
    name = module_name(model, block).rpartition(".")[0]
    layers = model.get_submodule(name)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(
            f"{type(model).__name__} no longer holds its expanded blocks in a list ({name})."
        )
    return layers


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that require gradients."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def set_trainable(model: nn.Module, names: Sequence[str]) -> None:
    """Let the named parameters require gradients, and no others."""
    trainable = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)


def _freeze(model: nn.Module, anatomy: Anatomy, config: ExpansionConfig) -> None:
    """Freeze the base, but for the groups that are to train in place."""
    groups = {
        "blocks": anatomy.layers,
        "embeddings": anatomy.embedding,
        "norm": anatomy.norm,
        "head": anatomy.head,
    }
    model.requires_grad_(False)
    for group, module in groups.items():
        if group not in config.frozen_groups and module is not None:
            module.requires_grad_(True)


def _expand_ends(
    model: PreTrainedModel, anatomy: Anatomy, config: ExpansionConfig, expansion: Expansion
) -> None:
    """Replace embedding, final norm and head; weights that were tied stay tied, in both copies."""
    expansion.ends = make_ends(anatomy, config, expansion.state)
    names = [module_name(model, end.pretrained) for end in expansion.ends.values()]
    for end in expansion.ends.values():
        replace_module(model, end.pretrained, end)
    expansion.tied_before = dict(getattr(model, "all_tied_weights_keys", {}) or {})
    rename_tied_keys(model, names, expansion.tied_before, ("pretrained", "expanded"))


def rename_tied_keys(
    model: PreTrainedModel, modules: Sequence[str], tied: dict[str, str], branches: Sequence[str]
) -> None:
    """Tell transformers the new names of tied weights: a pair for each branch of the ends."""

    def inside(key: str, branch: str) -> str:
        module, _, parameter = key.rpartition(".")
        return f"{module}.{branch}.{parameter}" if module in modules else key

    renamed = {
        inside(target, branch): inside(source, branch)
        for target, source in tied.items()
        for branch in branches
    }
    # Instance attributes: other models of the same class keep theirs.
    model._tied_weights_keys = renamed
    model.all_tied_weights_keys = dict(renamed)


def extend_config(anatomy: Anatomy, expansion: Expansion) -> None:
    """Caches and serving engines size themselves by the config: it counts L + n layers now."""
    config, L = anatomy.config, anatomy.num_layers
    changes: dict[str, Any] = {"num_hidden_layers": L + len(expansion.plan)}
    changes |= extended_lists(config.to_dict(), expansion.plan, L)
    expansion.config_before = {key: copy.copy(getattr(config, key)) for key in changes}
    for key, value in changes.items():
        setattr(config, key, value)
