"""`unroll`: a stacked expansion as the plain, deeper architecture of its base. Exact.

A stacked copy runs after its block, so the same function is a decoder with the copies in the list:

    [0] [1 -> copy] [2]  becomes  [0] [1] [2: the copy] [3]

with the blocks numbered anew (that is where their keys and values lie in the cache) and the lists
in the config that go by layers (`layer_types`) stretched the same way. Checked, not believed: what
the new config would build must be what was built, and the logits must be the same bits.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from controlllm.common.errors import ModelError
from controlllm.expansion.hub.expand import decoder_blocks
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.merge.checks import require_alone, require_one_alpha
from controlllm.expansion.merge.collapsing import (
    fold_ends,
    merge_active_adapters,
)
from controlllm.expansion.method.block import ExpandedBlock, StackBlock
from controlllm.expansion.method.ends import set_vocab_size
from controlllm.expansion.method.plan import ENDS
from controlllm.expansion.surgery.anatomy import examine
from controlllm.expansion.surgery.quantised import quantised_layers

__all__ = ["unroll"]

_PROBE = 16
"""Tokens of the forward pass that compares both models: the first of the vocabulary."""


@torch.no_grad()
def unroll(model: ControlLLMForCausalLM, inplace: bool = False) -> PreTrainedModel:
    """The same function without this package: the base's class with L + n blocks.

    A block whose dial is 0 loses its copy. Expanded ends are folded at their alpha, which is exact
    but for rounding; adapters are merged into the weights they were put around.

    Args:
        model: an expanded model with the structure "stack".
        inplace: reuse its memory; the expanded model and its base are then gone.

    Raises:
        ModelError: its copies run beside their blocks (concat, hybrid), its dial stands between 0
            and 1, its base is quantised, or a block of its architecture computes something else at
            another depth.
    """
    _check(model)
    if not inplace:
        model = copy.deepcopy(model)
    training = model.training
    merge_active_adapters(model.eval())
    before = _blocks_logits(model)
    slots = [*_slots(model)]
    blocks, ends = set(model.blocks), model._expansion.ends
    grown = model.config.base.get("grown_vocab_size")
    base = model.unload()
    _deepen(base, slots)
    _check_depth(base)
    if not torch.equal(before, _logits(base)):
        raise ModelError(
            f"{type(base).__name__} computes something else where layers {sorted(blocks)} are "
            "followed by their copies: a block of it depends on its number. Keep the form 'full'."
        )
    fold_ends(ends)
    if grown is not None:
        set_vocab_size(base, grown)
    return base.train(training)


def _check(model: ControlLLMForCausalLM) -> None:
    """Check that a plain decoder can compute the same (ModelError)."""
    require_alone(model)
    structure = model.expansion.structure
    if structure != "stack":
        raise ModelError(
            f"structure={structure!r} has copies that run beside their blocks, which no plain "
            "decoder computes: only 'stack' can be unrolled. 'collapsed' is the nearest plain "
            "form, an approximation."
        )
    if next(quantised_layers(model), None) is not None:
        raise ModelError(
            "The base of this model is quantised: load the sidecar onto the base as it was, and "
            "unroll that."
        )
    require_one_alpha(model._expansion)
    between = {layer: b.dial for layer, b in model.blocks.items() if b.dial not in (None, 0, 1)}
    if between:
        raise ModelError(
            f"The dial stands at {next(iter(between.values()))} for layers {sorted(between)}, and "
            "a plain decoder has no dial: only 0 (without the copy), 1 and 'as trained' can be "
            f"unrolled. Set alpha so (that of the ends, {ENDS}, may be any), or keep 'full'."
        )


def _slots(model: ControlLLMForCausalLM) -> Iterator[tuple[int, int, nn.Module]]:
    """The new list of blocks: layer of the base, slot in the cache until now, the block."""
    slot_of = {plan.layer: plan.cache_index for plan in model._expansion.plan}
    for layer, block in enumerate(decoder_blocks(model)):
        if not isinstance(block, ExpandedBlock):
            yield layer, layer, block
            continue
        assert isinstance(block, StackBlock)  # `_check` has looked
        yield layer, layer, block.pretrained
        if block.dial != 0:
            yield layer, slot_of[layer], block.expanded


def _deepen(base: PreTrainedModel, slots: Sequence[tuple[int, int, nn.Module]]) -> None:
    """Put the blocks into the base's list, numbered anew, and say so in its config."""
    anatomy = examine(base)
    config, L = anatomy.config, anatomy.num_layers
    del anatomy.layers[:]
    for index, (_, before, block) in enumerate(slots):
        for module in block.modules():
            if getattr(module, "layer_idx", None) == before:
                vars(module)["layer_idx"] = index
        anatomy.layers.append(block)
    for key, values in config.to_dict().items():
        if "layer" in key and isinstance(values, list) and len(values) == L:
            setattr(config, key, [values[layer] for layer, _, _ in slots])
    config.num_hidden_layers = len(slots)


def _check_depth(base: PreTrainedModel) -> None:
    """Check that the config builds just these blocks, window for window (ModelError)."""
    with torch.device("meta"):
        fresh = type(base)(copy.deepcopy(base.config))
    would = {name: _facts(module) for name, module in examine(fresh).layers.named_modules()}
    for name, module in examine(base).layers.named_modules():
        facts = _facts(module)
        other = would.get(name, {})
        if other != facts:
            differs = sorted(k for k in facts.keys() | other.keys() if facts.get(k) != other.get(k))
            raise ModelError(
                f"{type(base).__name__} would build layer {name} otherwise in a deeper decoder "
                f"({', '.join(differs)}): its config decides by the number of a layer what it is, "
                "so it cannot be unrolled. Keep the form 'full'."
            )


def _facts(module: nn.Module) -> dict[str, Any]:
    """What a module is, without its weights."""
    plain = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and name[0] != "_" and name != "training"
    }
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
    return {"class": type(module).__name__} | plain | shapes


def _blocks_logits(model: ControlLLMForCausalLM) -> Tensor:
    """Logits with the ends at their base: the part that must come out bit for bit."""
    ends = [*model._expansion.ends.values()]
    dials = [end.dial for end in ends]
    for end in ends:
        end.dial = 0.0
    logits = _logits(model)
    for end, dial in zip(ends, dials, strict=True):
        end.dial = dial
    return logits[..., : model.config.base["vocab_size"]]


def _logits(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(_PROBE, device=model.device)[None]
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits
