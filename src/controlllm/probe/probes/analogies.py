"""Forty phrases "a is to b" in a plane, and in TensorBoard's projector."""

import torch
import torch.nn.functional as F
from torch import Tensor

from controlllm.evaluate.judging.html import Child, tag
from controlllm.evaluate.judging.svg import Plot, axis_for
from controlllm.probe.contract import PROBES, Embedding, Finding
from controlllm.probe.pairs import RELATIONS, phrases
from controlllm.probe.probes.reading import measured, point, series
from controlllm.probe.quantities import two_dimensions
from controlllm.probe.study import Study, Text

__all__ = ["BRANCHES", "analogies", "closeness", "states"]

BRANCHES = {"frozen": "pretrained", "copy": "expanded", "merged": "merged"}


@PROBES.register("analogies")
def analogies(study: Study) -> Finding:
    """The hidden states of the phrases' last tokens by the branches of every block."""
    found = states(study)
    last = max(found)
    groups = [name for name, _ in phrases()]
    near = {name: closeness(vectors, groups) for name, vectors in found[last].items()}
    return Finding(
        title="Forty analogies",
        shows=f"The state of the last token of forty phrases “a is to b” at block {last}, "
        "flattened to the two directions in which they differ most (PCA of both branches "
        "together). A line begins where the frozen branch puts a phrase, the dot is where the "
        "copy puts it.",
        look_for="Phrases of one relation (one colour) should lie together, and stay together when "
        "they move: long lines all one way are a shift of the whole space, lines that tear a "
        "colour apart are structure that was lost. The projector shows all dimensions.",
        result="How much closer phrases of one relation are than others (difference of mean "
        "cosines): " + ", ".join(f"{name} {value:.4f}" for name, value in near.items()) + ".",
        parts=[_plane(found[last], groups)],
        scalars={
            f"analogies_{name}": {
                layer: closeness(one[name], groups) for layer, one in found.items()
            }
            for name in BRANCHES
        },
        embeddings=[_embedding(layer, one) for layer, one in found.items()],
    )


def states(study: Study) -> dict[int, dict[str, Tensor]]:
    """By layer and branch the states (40, D) of the phrases' last tokens."""
    found: dict[int, dict[str, list[Tensor]]] = {}
    for _, phrase in phrases():
        ids = torch.tensor([study.tokenizer(phrase).input_ids])
        seen = measured(study, Text(ids, ids, study.tokenizer))
        for layer in study.model.blocks:
            for name, branch in BRANCHES.items():
                state = getattr(seen, branch)[layer][0, -1].float()
                found.setdefault(layer, {}).setdefault(name, []).append(state)
    return {k: {n: torch.stack(rows) for n, rows in one.items()} for k, one in found.items()}


def closeness(vectors_ND: Tensor, groups: list[str]) -> float:
    """Mean cosine of pairs of one group, less that of pairs of two."""
    unit = F.normalize(vectors_ND - vectors_ND.mean(0), dim=-1)
    cosines = unit @ unit.T
    numbers = torch.tensor([list(dict.fromkeys(groups)).index(name) for name in groups])
    same = numbers[:, None] == numbers[None]
    other = ~same
    same &= ~torch.eye(len(groups), dtype=torch.bool)
    return (cosines[same].mean() - cosines[other].mean()).item()


def _plane(branches: dict[str, Tensor], groups: list[str]) -> Child:
    flat = two_dimensions(torch.cat([branches["frozen"], branches["copy"]])).tolist()
    starts, ends = flat[: len(groups)], flat[len(groups) :]
    plot = Plot(
        axis_for([x for x, _ in flat], "first component"),
        axis_for([y for _, y in flat], "second component"),
        "Forty analogies by the frozen branch and the copy",
        width=640,
        height=420,
    )
    order = list(RELATIONS)
    for (name, phrase), start, end in zip(phrases(), starts, ends, strict=True):
        number = order.index(name)
        plot.line([(start[0], start[1]), (end[0], end[1])], number)
        plot.point(point(end[0]), point(end[1]), number, title=f"{phrase} ({name})")
    return tag("figure", plot.drawn(), series(order), class_="wide big")


def _embedding(layer: int, branches: dict[str, Tensor]) -> Embedding:
    rows = [[phrase, name, branch] for branch in branches for name, phrase in phrases()]
    vectors = torch.cat(list(branches.values()))
    return Embedding(f"analogies/block_{layer}", vectors, ["phrase", "relation", "branch"], rows)
