"""What each branch would say, read through the last norm and the head."""

from typing import NamedTuple

import torch
from torch import Tensor

from controlllm.common.errors import ModelError
from controlllm.evaluate import evaluating
from controlllm.evaluate.judging.html import Child, tag
from controlllm.expansion.surgery.anatomy import last_norm
from controlllm.expansion.surgery.recording import ProbePass
from controlllm.inference.compare import text_pieces
from controlllm.probe.contract import PROBES, Finding
from controlllm.probe.drawing import SHADES, Scale, figure, legend, visible
from controlllm.probe.probes.reading import measured
from controlllm.probe.study import Study, Text

__all__ = ["Said", "lens", "read_states"]

MOST_TOKENS = 20
"""Positions of a text that a table shows."""
BRANCHES = {"frozen": "pretrained", "copy": "expanded", "merged": "merged"}


class Said(NamedTuple):
    """The likeliest next tokens (T) by one state, and their probabilities (T)."""

    ids: Tensor
    probabilities: Tensor


@PROBES.register("lens")
def lens(study: Study) -> Finding:
    """The logit lens on both branches and their join, at every expanded block."""
    parts: list[Child] = [legend(SCALE)]
    agree: dict[int, list[float]] = {}
    for number, text in enumerate(study.shown, 1):
        seen = measured(study, text)
        said = {layer: read_states(study, seen, layer) for layer in study.model.blocks}
        for layer, one in said.items():
            same = (one["frozen"].ids == one["copy"].ids).float()
            agree.setdefault(layer, []).append(same.mean().item())
        parts.append(figure(f"Text {number}", _table(text, said)))
    shares = {layer: sum(x) / len(x) for layer, x in agree.items()}
    if not shares:
        raise ModelError("no block is expanded.")
    most = min(shares, key=lambda layer: shares[layer])
    return Finding(
        title="What each branch would say",
        shows="The logit lens: the output of the frozen branch, of the copy, and of their join at "
        "each expanded block, sent through the model's last norm and head. A cell is the likeliest "
        "next token after the token above it; the stronger, the surer. Underlined: it is the token "
        "that comes.",
        look_for="In shallow layers the lens is mere noise. From where the words make sense on, "
        "rows in which the copy says something else than its frozen twin show what that block "
        "learned, and “merged” shows whether it prevails.",
        result=f"Frozen branch and copy agree least at block {most}: on {100 * shares[most]:.0f} % "
        "of the shown tokens.",
        parts=parts,
        scalars={"lens_agreement": shares},
    )


@torch.no_grad()
def read_states(study: Study, seen: ProbePass, layer: int) -> dict[str, Said]:
    """What `frozen`, `copy` and `merged` of a block would say if the model ended there."""
    norm, head = last_norm(study.model.get_decoder()), study.model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(study.model).__name__} has no head to read states with.")
    found = {}
    with evaluating(study.model):
        for name, branch in BRANCHES.items():
            state = getattr(seen, branch)[layer].to(study.model.device)
            best = head(state if norm is None else norm(state)).float().softmax(-1)[0].max(-1)
            found[name] = Said(best.indices.cpu(), best.values.cpu())
    return found


SCALE = Scale(1.0, "probability of the likeliest token")


def _table(text: Text, said: dict[int, dict[str, Said]]) -> Child:
    places = text.window(MOST_TOKENS)
    heads = [tag("th", scope="col"), tag("th", scope="col")]
    heads += [tag("th", visible(text.pieces[i]), scope="col") for i in places]
    bodies = []
    for layer, one in said.items():
        rows = []
        for number, (name, branch) in enumerate(one.items()):
            layer_cell = tag("th", f"block {layer}" if number == 0 else "")
            cells = [_cell(text, branch, i) for i in places]
            rows.append(tag("tr", layer_cell, tag("th", name, scope="row"), cells))
        bodies.append(tag("tbody", rows))
    whole = tag("table", tag("thead", tag("tr", heads)), bodies, class_="lens")
    return tag("div", whole, class_="scroll", tabindex=0)


def _cell(text: Text, branch: Said, place: int) -> Child:
    token, probability = int(branch.ids[place]), float(branch.probabilities[place])
    comes = place + 1 < text.ids.shape[1] and token == int(text.ids[0, place + 1])
    shade = f"q{min(SHADES, round(SHADES * probability))}"
    said = visible(text_pieces(text.tokenizer, [int(text.ids[0, place]), token], 1)[0])
    return tag(
        "td", said, class_=f"{shade}{' hit' if comes else ''}", title=f"p = {probability:.3f}"
    )
