"""|e - p| / |p| and cos(p, e): how far each copy has moved from its frozen twin."""

from controlllm.common.errors import ModelError
from controlllm.evaluate.judging.html import Child
from controlllm.probe.contract import PROBES, Finding
from controlllm.probe.drawing import figure, heat_map, legend, scale_for
from controlllm.probe.probes.reading import layer_means, measured, part_name, plane_by_layer
from controlllm.probe.quantities import cosine, relative_change
from controlllm.probe.study import Study

__all__ = ["movement"]


@PROBES.register("movement")
def movement(study: Study) -> Finding:
    """The two distances of every layer and token."""
    changes, cosines = [], []
    for text in study.every:
        seen = measured(study, text)
        both = [part for part in seen.pretrained if part in seen.expanded]
        if not both:
            raise ModelError("no copy runs: the expansion is switched off.")
        pairs = {part: (seen.pretrained[part], seen.expanded[part]) for part in both}
        changes.append({part: relative_change(*pair)[0] for part, pair in pairs.items()})
        cosines.append({part: cosine(*pair)[0] for part, pair in pairs.items()})
    change, cos = layer_means(changes), layer_means(cosines)
    most = max(change, key=lambda part: change[part])
    least = min(change, key=lambda part: change[part])
    shown = list(zip(study.shown, changes, cosines, strict=False))
    by_change = scale_for(
        [v for one in changes for x in one.values() for v in x.tolist()], "|e − p| / |p|"
    )
    by_angle = scale_for(
        [1 - v for one in cosines for x in one.values() for v in x.tolist()], "1 − cos(p, e)"
    )
    parts: list[Child] = [
        plane_by_layer({"|e − p| / |p|": change, "cos(p, e)": cos}, "mean over all tokens")
    ]
    parts += [legend(by_change), legend(by_angle)]
    for number, (text, one, angle) in enumerate(shown, 1):
        for what, values, scale in (
            ("|e − p| / |p|", one, by_change),
            ("1 − cos(p, e)", {part: 1 - x for part, x in angle.items()}, by_angle),
        ):
            rows = [(part_name(part), x.tolist()) for part, x in values.items()]
            title = f"Text {number}: {what}"
            parts.append(figure(title, heat_map(rows, text.pieces, scale, title)))
    return Finding(
        title="How far the copies have moved",
        shows="For each token (left to right) and each expanded part (top to bottom): how far the "
        "copy's output e lies from its frozen twin's output p on the same input, relative to |p|, "
        "and how much it points elsewhere (1 − cos). Without colour: they agree.",
        look_for="Strong rows are blocks that learned a lot (or were left unaligned), strong "
        "columns tokens that the new domain treats differently. A large length with a small angle "
        "is mere scaling.",
        result=f"{part_name(most).capitalize()} has moved most ({change[most]:.3f} of |p|), "
        f"{part_name(least)} least ({change[least]:.3f}); cosines lie between "
        f"{min(cos.values()):.3f} and {max(cos.values()):.3f}.",
        parts=parts,
        scalars={
            "relative_change": {k: v for k, v in change.items() if isinstance(k, int)},
            "cosine": {k: v for k, v in cos.items() if isinstance(k, int)},
        },
    )
