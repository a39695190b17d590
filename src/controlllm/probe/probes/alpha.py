"""How much each token takes from each copy."""

from controlllm.evaluate.judging.html import Child
from controlllm.probe.contract import PROBES, Finding
from controlllm.probe.drawing import Scale, figure, heat_map, legend
from controlllm.probe.probes.reading import layer_means, measured, part_name, plane_by_layer
from controlllm.probe.study import Study

__all__ = ["alpha"]


@PROBES.register("alpha")
def alpha(study: Study) -> Finding:
    """The weight of the copy for every layer and token, as it is in force now."""
    seen = []
    for text in study.every:
        now = measured(study, text)
        seen.append({part: a[0] for part, a in now.alpha.items() if part in now.merged})
    means = layer_means(seen)
    scale = Scale(1.0, "alpha: 0 is the base, 1 the copy alone")
    varies = any(values.std(correction=0) > 1e-6 for one in seen for values in one.values())
    parts: list[Child] = [plane_by_layer({"alpha": means}, "mean alpha"), legend(scale)]
    # One shade need not be shown twice.
    shown = study.shown if varies else study.shown[:1]
    for number, (text, one) in enumerate(zip(shown, seen, strict=False), 1):
        rows = [(part_name(part), values.tolist()) for part, values in one.items()]
        title = f"Text {number}: alpha"
        parts.append(figure(title, heat_map(rows, text.pieces, scale, title)))
    low, high = min(means.values()), max(means.values())
    same = f"{low:.3f}" == f"{high:.3f}"
    told = (
        f"Alpha is {low:.3f} in all of them"
        if same
        else (f"Mean alphas lie between {low:.3f} and {high:.3f}")
    )
    said = (
        "and differ from token to token."
        if varies
        else "the same for every token: no gate decides."
    )
    return Finding(
        title="Alpha, layer by layer",
        shows="For each token and each expanded part: alpha, the weight of the copy in what the "
        "part gives on, with the dial as it stands.",
        look_for="With a constant gate every row has one shade. With token gates (dlerp, dlerpin, "
        "moe) strong cells are tokens for which the model leaves the base's path: they should be "
        "words of the new domain, not of the old one.",
        result=f"{told}, {said}",
        parts=parts,
        scalars={"alpha": {k: v for k, v in means.items() if isinstance(k, int)}},
    )
