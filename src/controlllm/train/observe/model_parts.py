"""What the parts of a model compute, read from its modules and its config.

Structure decides, not a table of architectures: every matrix of a block is multiplied with each
token, of stacked experts a few; the widths of attention stand in the config.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from controlllm.common.tensors import whole_shape
from controlllm.expansion import (
    ControlLLMForCausalLM,
    Interpolator,
    block_parts,
    decoder_blocks,
)
from controlllm.train.observe.flops import Part

__all__ = ["parts_of"]

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_QUADRATIC = ("full_attention", "sliding_attention", "chunked_attention")


def parts_of(model: nn.Module) -> list[Part]:
    """What a model computes, in order; it may be on the meta device, sharded or quantised.

    Raises:
        ModelError: the model's blocks cannot be found.
    """
    return list(_parts(model))


def _parts(model: nn.Module) -> Iterator[Part]:
    ends = model._expansion.ends if isinstance(model, ControlLLMForCausalLM) else {}
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    share = _share_of_experts(config)
    below = _embeds(model)
    for layer, block in enumerate(decoder_blocks(model)):
        attends = _attention(config, layer)
        for part, module in block_parts(block):
            name, of_base = f"layer {layer} {part}".strip(), part in ("", "pretrained")
            if of_base:
                below = below or _trains(module)
            passes = below or (part.endswith("expanded") and _trains(module))
            if isinstance(module, Interpolator):
                yield _part(name, module, passes, of_base=False)
            else:
                yield _part(name, module, passes, share, of_base=of_base, **attends)
        below = below or _trains(block)
    head = ends["head"].expanded if "head" in ends else model.get_output_embeddings()  # type: ignore[operator]
    if head is not None:
        yield _part("head", head, below, is_head=True)


def _part(name: str, module: nn.Module, passes: bool, share: float = 1.0, **more: Any) -> Part:
    matrices = trained = 0.0
    for number, trains in _matrices(module, share):
        matrices += number
        trained += number * trains
    return Part(name, matrices, trained, passes=passes, again=_computed_again(module), **more)


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


def _attention(config: Any, layer: int) -> dict[str, Any]:
    """What of a decoder's config concerns the attention of one layer: fields of `Part`."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds and layer < len(kinds) else None
    if kind is not None and kind not in _QUADRATIC:
        heads = 0
    return {
        "keys": heads * (getattr(config, "qk_head_dim", None) or width),
        "values": heads * (getattr(config, "v_head_dim", None) or width),
        "window": _window(config, kind),
        # A kernel that computes it in one keeps no scores.
        "scores_again": "eager" not in (config._attn_implementation or "sdpa"),
    }


def _window(config: Any, kind: str | None) -> int | None:
    if kind == "chunked_attention":
        return getattr(config, "attention_chunk_size", None)
    slides = kind == "sliding_attention" or kind is None
    if not slides or getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


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
