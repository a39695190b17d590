"""Where the parts of a decoder-only model are, found by structure: no table of architectures."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from controlllm.common.errors import ModelError

__all__ = [
    "Anatomy",
    "examine",
    "last_norm",
    "module_name",
    "own_config",
    "replace_module",
    "residual_projections",
]

RESIDUAL_PROJECTIONS = (
    *("o_proj", "out_proj", "c_proj", "dense", "wo"),
    *("down_proj", "dense_4h_to_h", "fc2", "w2", "fc_out"),
)
"""Usual names of what writes to the residual stream: attention output and MLP-down projections."""


@dataclass
class Anatomy:
    """The parts of a decoder-only model that expansion touches; None is one that it lacks.

    `layers` is the list of blocks in its `decoder`, `config` the one that the loop over them and
    the cache read, `norm` the last norm that stands directly in the decoder.
    """

    decoder: nn.Module
    layers: nn.ModuleList
    config: Any
    embedding: nn.Module | None
    norm: nn.Module | None
    head: nn.Module | None

    @property
    def num_layers(self) -> int:
        """L, the number of blocks."""
        return len(self.layers)


def own_config(model: PreTrainedModel) -> None:
    """Give a model a copy of its config, in place: other models may share the one it has."""
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)  # It notes every config inside, too.
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, PreTrainedConfig) and id(value) in copies:
                vars(module)[name] = copies[id(value)]


def examine(model: nn.Module) -> Anatomy:
    """Find the parts of `model`, changing nothing.

    Raises:
        ModelError: if it is no decoder-only Hugging Face model with a list of blocks.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"{name} is no Hugging Face model; load one with AutoModelForCausalLM.from_pretrained."
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder; only decoder-only models can be expanded.")
    if not model.can_generate():
        raise ModelError(
            f"{name} is no language model that generates; load one with "
            f"AutoModelForCausalLM.from_pretrained."
        )
    decoder = model.get_decoder()
    layers = _find_layers(decoder)
    if layers is None:
        raise ModelError(
            f"{name} has no list of decoder blocks (looked in {type(decoder).__name__}); only "
            "decoder-only transformers can be expanded."
        )
    return Anatomy(
        decoder=decoder,
        layers=layers,
        config=decoder.config,
        embedding=model.get_input_embeddings(),
        norm=last_norm(decoder),
        head=model.get_output_embeddings(),
    )


def last_norm(decoder: nn.Module) -> nn.Module | None:
    """The last norm that stands directly in a decoder, behind its blocks; expanded or not."""
    norms = [m for m in decoder.children() if "norm" in type(m).__name__.lower()]
    return norms[-1] if norms else None


def _find_layers(decoder: nn.Module) -> nn.ModuleList | None:
    """The decoder's blocks: called `layers`, or the only list as long as the config's depth."""
    depth = getattr(getattr(decoder, "config", None), "num_hidden_layers", None)
    lists = {
        n: m
        for n, m in decoder.named_children()
        if isinstance(m, nn.ModuleList) and len(m) == depth
    }
    if "layers" in lists:
        return lists["layers"]
    return next(iter(lists.values())) if len(lists) == 1 else None


def module_name(root: nn.Module, wanted: nn.Module) -> str:
    """The dotted name of a submodule, found by identity."""
    return next(name for name, module in root.named_modules() if module is wanted)


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` where `old` is, wherever that is below `root`."""
    parent, _, child = module_name(root, old).rpartition(".")
    setattr(root.get_submodule(parent), child, new)


def residual_projections(block: nn.Module, names: list[str] | None = None) -> list[nn.Parameter]:
    """The weights (and biases) of a block that write to the residual stream.

    Args:
        block: a decoder block.
        names: names of the modules or parameters to take instead of the usual ones.

    Raises:
        ModelError: if attention or MLP has none, so that a zeroed copy would not be the identity.
    """
    wanted = tuple(names or RESIDUAL_PROJECTIONS)
    found: list[nn.Parameter] = []
    for child_name, child in block.named_children():
        if not any(True for _ in child.parameters()) or "norm" in type(child).__name__.lower():
            continue
        here = list(_named_like(child_name, child, wanted))
        if not here:
            raise ModelError(
                f"structure='stack' starts as the identity, but {child_name} of "
                f"{type(block).__name__} has none of {', '.join(wanted)}; name its output "
                "projection in residual_projections, or use 'concat'."
            )
        found += here
    return found


def _named_like(
    own_name: str, module: nn.Module, wanted: tuple[str, ...]
) -> Iterator[nn.Parameter]:
    """Parameters below `module` of whose dotted names (its own included) one part is wanted."""
    for name, parameter in module.named_parameters():
        parts = [own_name, *name.split(".")]
        if any(part in wanted or part.removesuffix("_bias") in wanted for part in parts):
            yield parameter
