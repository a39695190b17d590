"""Where each branch looks: attention maps of both, and how far apart they are head by head."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from controlllm.common.errors import ModelError
from controlllm.evaluate import evaluating
from controlllm.evaluate.judging.html import Child, tag
from controlllm.expansion.method.attention_maps import attention_module
from controlllm.probe.contract import PROBES, Finding
from controlllm.probe.drawing import Scale, figure, heat_map, legend, scale_for, visible
from controlllm.probe.quantities import attention_kl
from controlllm.probe.study import Study, Text

__all__ = ["attention", "attention_maps"]

MOST_TOKENS, MOST_LAYERS = 24, 3
"""What is drawn; all layers, heads and tokens are measured."""

Maps = tuple[Tensor, Tensor]
"""Of the frozen branch and of the copy (1, H, T, T)."""


@PROBES.register("attention")
def attention(study: Study) -> Finding:
    """KL between the branches' attention by layer and head, and the maps of the largest ones."""
    maps = [attention_maps(study, text) for text in study.shown]
    layers = list(maps[0])
    apart = {
        layer: torch.stack([attention_kl(*one[layer]) for one in maps]).mean(0) for layer in layers
    }
    means = {layer: heads.mean().item() for layer, heads in apart.items()}
    scale = scale_for(
        [v for heads in apart.values() for v in heads.tolist()], "KL(copy ‖ frozen) in nats"
    )
    heads = [f"head {number}" for number in range(max(len(x) for x in apart.values()))]
    rows = [(f"block {layer}", apart[layer].tolist()) for layer in layers]
    parts: list[Child] = [
        legend(scale),
        figure("By layer and head", heat_map(rows, heads, scale, "KL by layer and head", width=22)),
    ]
    largest = sorted(layers, key=lambda layer: -means[layer])[:MOST_LAYERS]
    parts += [legend(SHARES), legend(CHANGES)]
    parts += [_maps(study.shown[0], layer, maps[0][layer]) for layer in sorted(largest)]
    most = largest[0]
    head = int(apart[most].argmax())
    return Finding(
        title="Where each branch looks",
        shows="How far the copy's attention lies from its frozen twin's (KL over the keys, mean "
        "over queries), by layer and head; then the maps of the blocks where they differ most, "
        "means over heads: each row is a token that looks, each column one that is looked at; the "
        "first token, and those from where targets begin.",
        look_for="A head with a strong cell looks elsewhere than before. In the third map of each "
        "block blue cells are looked at more by the copy, orange ones less. Much on the first "
        "column is usual: heads rest there.",
        result=f"Block {most} looks elsewhere most (KL {means[most]:.4f}), there head {head}. "
        "Computed with eager attention, which alone gives maps.",
        parts=parts,
        scalars={"attention_kl": means},
    )


SHARES = Scale(1.0, "share of the attention")
CHANGES = Scale(0.5, "copy − frozen", signed=True)


@torch.no_grad()
def attention_maps(study: Study, text: Text) -> dict[int, Maps]:
    """The maps of both branches by layer, of one pass with eager attention.

    Raises:
        ModelError: the model gives no maps.
    """
    caught: dict[tuple[int, str], Tensor] = {}
    hooks = []
    try:
        for layer, block in study.model.blocks.items():
            for name in ("pretrained", "expanded"):
                hook = _catcher(caught, (layer, name))
                hooks.append(attention_module(getattr(block, name)).register_forward_hook(hook))
        # The probe makes both branches run, whatever the dial leaves out.
        with _eager(study.model), evaluating(study.model), study.model.probe(device="cpu"):
            study.model(input_ids=text.ids.to(study.model.device), use_cache=False)
    finally:
        for one in hooks:
            one.remove()
    found = {
        layer: (caught[layer, "pretrained"], caught[layer, "expanded"])
        for layer in study.model.blocks
        if {(layer, "pretrained"), (layer, "expanded")} <= caught.keys()
    }
    if not found:
        raise ModelError(
            f"{type(study.model).__name__} gives no attention maps, with eager attention neither: "
            "leave this probe out (--probes)."
        )
    return found


def _catcher(caught: dict[tuple[int, str], Tensor], key: tuple[int, str]) -> Any:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor):
            caught[key] = output[1].float().cpu()

    return keep


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Inside, attention is computed in the way that gives maps."""
    before = model.config.get_text_config(decoder=True)._attn_implementation
    try:
        model.set_attn_implementation("eager")
    except (ValueError, ImportError) as error:
        raise ModelError(f"attention maps need eager attention: {error}") from error
    try:
        yield
    finally:
        if before is not None:
            model.set_attn_implementation(before)


def _maps(text: Text, layer: int, maps: Maps) -> Child:
    """Three pictures of one block: frozen, copy, and what changed."""
    window = text.window(MOST_TOKENS)
    places = [*([0] if window.start else []), *window]  # Heads rest on the first token.
    frozen, copy = (one[0].mean(0)[places][:, places] for one in maps)
    names = [text.pieces[place] for place in places]
    figures = []
    for what, values, scale in (
        ("frozen", frozen, SHARES),
        ("copy", copy, SHARES),
        ("copy − frozen", copy - frozen, CHANGES),
    ):
        rows = [
            (visible(name), _until(row, i))
            for i, (name, row) in enumerate(zip(names, values, strict=True))
        ]
        title = f"Block {layer}: {what}"
        figures.append(figure(title, heat_map(rows, names, scale, title)))
    return tag("div", figures, class_="maps")


def _until(row: Tensor, place: int) -> list[float]:
    """What a token can look at: itself and those before it."""
    return [value if k <= place else float("nan") for k, value in enumerate(row.tolist())]
