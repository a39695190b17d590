"""What the parts of a model compute, read from its modules and its config.

Structure decides, not a table of architectures: every matrix of a block is multiplied with each
token, of stacked experts a few; the widths of attention stand in the config.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from controlllm.common.tensors import whole_shape
from controlllm.expansion import ConcatBlock, ControlLLMForCausalLM, ExpandedBlock, decoder_blocks
from controlllm.train.observe.flops import Part

__all__ = ["parts_of"]

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_QUADRATIC = ("full_attention", "sliding_attention", "chunked_attention")


def parts_of(model: nn.Module) -> list[Part]:
    """What a model computes, in order; it may be on the meta device, sharded or quantised.

    Args:
        model: expanded or not.

    Raises:
        ModelError: the model's blocks cannot be found.
    """
    return list(_parts(model))


def _parts(model: nn.Module) -> Iterator[Part]:
    ends = model._expansion.ends if isinstance(model, ControlLLMForCausalLM) else {}
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    below = _embeds(model)
    for layer, block in enumerate(decoder_blocks(model)):
        yield from _block(f"layer {layer}", block, _Attention.of(config, layer), below)
        below = below or _trains(block)
    head = ends["head"].expanded if "head" in ends else model.get_output_embeddings()  # type: ignore[operator]
    if head is not None:
        yield replace(_part("head", head, None, below), is_head=True)


def _block(name: str, block: nn.Module, attention: "_Attention", below: bool) -> Iterator[Part]:
    """A block, or the two branches of an expanded one and what joins them."""
    if not isinstance(block, ExpandedBlock):
        yield _part(name, block, attention, below or _trains(block))
        return
    yield _part(
        f"{name} pretrained", block.pretrained, attention, below or _trains(block.pretrained)
    )
    below = below or _trains(block.pretrained)
    yield _part(f"{name} expanded", block.expanded, attention, True, of_base=False)
    if isinstance(block, ConcatBlock):
        yield _part(f"{name} interpolator", block.interpolator, None, below, of_base=False)


def _part(
    name: str,
    module: nn.Module,
    attention: "_Attention | None",
    passes: bool,
    of_base: bool = True,
) -> Part:
    share = attention.share_of_experts if attention else 1.0
    matrices = trained = 0.0
    for number, trains in _matrices(module, share):
        matrices += number
        trained += number * trains
    return Part(
        name,
        matrices,
        trained,
        keys=attention.keys if attention else 0,
        values=attention.values if attention else 0,
        window=attention.window if attention else None,
        passes=passes,
        again=_computed_again(module),
        scores_again=attention.fused if attention else False,
        of_base=of_base,
    )


def _matrices(module: nn.Module, share_of_experts: float) -> Iterator[tuple[float, bool]]:
    """Numbers of each matrix that a token meets, and whether it trains."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            continue
        if isinstance(part, nn.Linear):  # quantised weights may be packed: their shape is told here
            yield part.in_features * part.out_features, part.weight.requires_grad
            continue
        for parameter in part.parameters(recurse=False):
            shape = whole_shape(parameter)
            if len(shape) >= 2:  # of stacked experts, a token meets a few
                share = share_of_experts if len(shape) == 3 else 1.0
                yield shape.numel() * share, parameter.requires_grad


@dataclass(frozen=True)
class _Attention:
    """What of a decoder's config concerns one layer."""

    keys: int
    values: int
    window: int | None
    fused: bool
    share_of_experts: float

    @classmethod
    def of(cls, config: Any, layer: int) -> "_Attention":
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        keys = heads * (getattr(config, "qk_head_dim", None) or width)
        values = heads * (getattr(config, "v_head_dim", None) or width)
        kinds = getattr(config, "layer_types", None)
        kind = kinds[layer] if kinds and layer < len(kinds) else None
        if kind is not None and kind not in _QUADRATIC:
            keys = values = 0
        return cls(keys, values, _window(config, kind), _fused(config), _share_of_experts(config))


def _window(config: Any, kind: str | None) -> int | None:
    if kind == "chunked_attention":
        return getattr(config, "attention_chunk_size", None)
    slides = kind == "sliding_attention" or kind is None
    if not slides or getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


def _fused(config: Any) -> bool:
    """Whether a kernel computes attention in one and keeps no scores."""
    return "eager" not in (config._attn_implementation or "sdpa")


def _share_of_experts(config: Any) -> float:
    chosen = getattr(config, "num_experts_per_tok", None)
    every = next((n for name in _EXPERTS if (n := getattr(config, name, None))), None)
    return chosen / every if chosen and every else 1.0


def _computed_again(module: nn.Module) -> bool:
    """Whether activation checkpointing covers this part, and keeps no results of its matrices."""
    for part in module.modules():
        if getattr(part, "gradient_checkpointing", False):
            settings = getattr(getattr(part, "_gradient_checkpointing_func", None), "keywords", {})
            return "context_fn" not in settings  # a selective policy keeps them
    return False


def _trains(module: nn.Module | None) -> bool:
    return module is not None and any(p.requires_grad for p in module.parameters())


def _embeds(model: nn.Module) -> bool:
    """Whether an embedding trains, so that everything above it needs gradients."""
    tables = (part for part in model.modules() if isinstance(part, nn.Embedding))
    return any(_trains(table) for table in tables)
