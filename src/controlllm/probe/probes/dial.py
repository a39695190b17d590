"""One prompt, and the losses, over alpha."""

from typing import Any

import torch

from controlllm.common.errors import ModelError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.common.text.progress import progress
from controlllm.evaluate.judging.html import Child, cut, tag
from controlllm.evaluate.judging.svg import Plot, axis_for
from controlllm.inference import GenerationSettings, Generator
from controlllm.probe.contract import PROBES, Finding
from controlllm.probe.probes.reading import point, series
from controlllm.probe.study import Study, Text

__all__ = ["dial", "sweep"]

LONGEST_PROMPT = 48
"""Tokens that are taken of the first text, where no prompt is given."""


@PROBES.register("dial")
def dial(study: Study) -> Finding:
    """What is written, and log p of the texts, at every setting of the dial."""
    alphas = sorted(dict.fromkeys(study.settings.alphas))
    curves, written = sweep(study, alphas)
    plot = Plot(
        axis_for(alphas, "alpha: 0 is the base"),
        axis_for([v for line in curves.values() for _, v in line], "log p per token (nats)"),
        "Log-probability of the texts over alpha",
        height=250,
    )
    for number, line in enumerate(curves.values()):
        plot.line(line, number)
        for alpha, value in line:
            plot.point(point(alpha), point(value), number, title=f"alpha {alpha:g}: {value:.4f}")
    name = next(iter(curves))
    best = max(curves[name], key=lambda one: one[1])
    gates = study.model.has_gates
    return Finding(
        title="One prompt over alpha",
        shows="The same prompt continued greedily at several settings of the dial, and the mean "
        "log-probability of all given texts at each of them."
        + (" Alpha multiplies what the token gates say: 1 is as trained." if gates else ""),
        look_for="Where the text turns from the base's manner to the new one, and whether the best "
        "point of the learned texts lies before the point from which the texts to keep fall.",
        result=f"Of the measured settings alpha {best[0]:g} gives the learned texts the highest "
        f"log p ({best[1]:.3f} nats per token).",
        parts=[
            tag("figure", tag("h3", "Log p of the texts"), plot.drawn(), series(list(curves))),
            tag("h3", "Written after the prompt"),
            tag("pre", cut(_prompt_text(study)), class_="tokens"),
            tag("div", [_box(alpha, text) for alpha, text in written], class_="pair"),
        ],
    )


def sweep(
    study: Study, alphas: list[float]
) -> tuple[dict[str, list[tuple[float, float]]], list[tuple[float, str]]]:
    """Mean log p per target of each set of texts, and what is written, at every alpha."""
    sets = {"texts": study.learn, **({"texts to keep": study.retain} if study.retain else {})}
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in sets}
    written = []
    limit = GenerationSettings(max_new_tokens=study.settings.max_new_tokens)
    prompt = _prompt(study)
    with progress("turning the dial", "settings", len(alphas)) as line:
        for number, alpha in enumerate(alphas, 1):
            study.model.set_alpha(alpha)
            for name, texts in sets.items():
                losses = study.losses(texts)
                tokens = max(sum(n for _, n in losses), 1)
                curves[name].append((alpha, -sum(x for x, _ in losses) / tokens))
            # Anew each time: a cache belongs to the alpha that it was computed with.
            writer: Any = Generator(study.model, study.tokenizer, limit)
            written.append((alpha, writer.write(prompt)))
            line.show(number)
    return curves, written


def _prompt(study: Study) -> torch.Tensor:
    """What is continued (1, T)."""
    if study.settings.prompt is not None:
        ids = study.tokenizer(study.settings.prompt).input_ids[: study.settings.max_length]
        if not ids:
            raise ModelError("the prompt has no token; give --prompt some text.")
        return torch.tensor([ids])
    return study.learn[0].ids[:, : _begins(study.learn[0])]


def _begins(text: Text) -> int:
    """How much of a text is the prompt: what its targets answer to, else its first half."""
    begins = text.begins
    own_prompt = begins > 1 and bool((text.labels[0, :begins] == IGNORE_INDEX).all())
    return begins if own_prompt else min(max(1, text.ids.shape[1] // 2), LONGEST_PROMPT)


def _prompt_text(study: Study) -> str:
    if study.settings.prompt is not None:
        return study.settings.prompt
    first = study.learn[0]
    return "".join(first.pieces[: _begins(first)])


def _box(alpha: float, text: str) -> Child:
    label = "alpha 0 (the base)" if alpha == 0 else f"alpha {alpha:g}"
    return tag("div", tag("h3", label), tag("pre", cut(text) or "(nothing)"))
