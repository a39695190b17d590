"""What several probes ask: a text's pass as it is seen, means by layer, names of parts.

Shapes: T tokens.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from controlllm.evaluate import Interval, evaluating
from controlllm.evaluate.judging.html import Child, tag
from controlllm.evaluate.judging.svg import Plot, axis_for
from controlllm.expansion.surgery.recording import Part, ProbePass
from controlllm.probe.study import Study, Text

__all__ = ["layer_means", "measured", "part_name", "plane_by_layer", "point", "series"]


@torch.no_grad()
def measured(study: Study, text: Text) -> ProbePass:
    """One pass over a text, kept on the CPU."""
    with evaluating(study.model), study.model.probe(device="cpu") as probe:
        study.model(input_ids=text.ids.to(study.model.device), use_cache=False)
    return probe.last


def layer_means(values: Sequence[Mapping[Part, Tensor]]) -> dict[Part, float]:
    """The mean of each part over all tokens of all texts, each (T)."""
    return {
        part: torch.cat([one[part].double() for one in values]).mean().item() for part in values[0]
    }


def part_name(part: Part) -> str:
    """A part as people call it."""
    return (
        f"block {part}"
        if isinstance(part, int) and part >= 0
        else "ends"
        if part == -1
        else str(part)
    )


def point(value: float) -> Interval:
    """A value without an interval."""
    return Interval(value, value, value)


def series(names: Sequence[str]) -> Child:
    """Which colour is what."""
    entries = [tag("li", tag("span", class_=f"s{n % 8}"), name) for n, name in enumerate(names)]
    return tag("ul", entries, class_="legend")


def plane_by_layer(curves: Mapping[str, Mapping[Part, float]], y: str) -> Child:
    """Numbers of expanded blocks over the depth, one small picture each; ends are left out.

    Where one block alone is expanded there is nothing to draw.
    """
    figures = []
    for name, curve in curves.items():
        line = [
            (float(k), v) for k, v in sorted((k, v) for k, v in curve.items() if isinstance(k, int))
        ]
        if len(line) < 2:
            continue
        plot = Plot(
            axis_for([k for k, _ in line], "layer", whole=True),
            axis_for([v for _, v in line], y, around=[0.0] if name.startswith("|") else []),
            f"{name} by layer",
            height=220,
        )
        plot.line(line, 0)
        for k, v in line:
            plot.point(point(k), point(v), 0, title=f"block {k:.0f}: {v:.4f}")
        figures.append(tag("figure", tag("h3", name), plot.drawn()))
    return tag("div", figures, class_="plots") if figures else None
