"""Hidden states and attentions of an expanded model: one per position, not one per branch.

transformers records the output of every decoder layer that it finds, both branches of a block among
them. What users mean by `output_hidden_states` is the merged stream: L + 1 states.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate, islice
from typing import Any

from torch import Tensor, nn

from controlllm.expansion.surgery.install import Expansion, expanded_list

__all__ = ["merged_stream", "one_attention_per_layer", "picked", "run_merged"]


def run_merged(
    call: Callable[[], Any],
    decoder: nn.Module,
    expansion: Expansion,
    hidden_states: bool | int | list[int] | None,
) -> Any:
    """Run a forward pass and put the merged stream into its output.

    Args:
        call: the forward pass; its output is a `ModelOutput`.
        decoder: the stack of blocks that it runs through.
        expansion: what was put into it.
        hidden_states: `output_hidden_states` as transformers takes it: a flag, or indices.

    Returns:
        The output, with L + 1 `hidden_states` where wanted, and one attention map per position (the
        pretrained branch's; the copy's where it alone ran) where the base gives maps.
    """
    if not hidden_states:
        return one_attention_per_layer(call(), expansion)
    with merged_stream(decoder, expanded_list(decoder, expansion)) as states:
        output = one_attention_per_layer(call(), expansion)
    output["hidden_states"] = picked(states, hidden_states)
    return output


@contextmanager
def merged_stream(decoder: nn.Module, layers: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the L + 1 states (B, T, D) of the stream that runs through these layers, inside."""
    states: list[Tensor] = []

    def keep_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    def keep_output(module: nn.Module, args: Any, output: Any) -> None:
        states.append(output[0])

    hooks = [layer.register_forward_pre_hook(keep_input, with_kwargs=True) for layer in layers]
    hooks.append(decoder.register_forward_hook(keep_output))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def one_attention_per_layer(output: Any, expansion: Expansion) -> Any:
    """Keep the pretrained branch's map of each position (both are recorded, in this order)."""
    maps = getattr(output, "attentions", None)
    if not maps or not expansion.state.enabled:
        return output
    steps = {layer: len(block.slots) for layer, block in expansion.blocks.items()}
    starts = accumulate((steps.get(layer, 1) for layer in range(len(maps))), initial=0)
    positions = len(maps) - sum(steps.values()) + len(steps)
    output["attentions"] = tuple(maps[start] for start in islice(starts, positions))
    return output


def picked(states: list[Tensor], wanted: bool | int | list[int]) -> tuple[Tensor | None, ...]:
    """The states at the wanted indices and None elsewhere, as transformers does it; True is all."""
    if wanted is True:
        return tuple(states)
    indices = [wanted] if isinstance(wanted, int) else wanted
    chosen = {i % len(states) for i in indices if -len(states) <= i < len(states)}
    return tuple(state if i in chosen else None for i, state in enumerate(states))
