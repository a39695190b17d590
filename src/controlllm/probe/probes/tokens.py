"""Where the tuned model says something else: KL(base || tuned), change of log p."""

import math

from controlllm.common.losses import IGNORE_INDEX
from controlllm.evaluate import evaluating
from controlllm.evaluate.judging.html import Child, tag
from controlllm.evaluate.judging.tables import table
from controlllm.inference import token_changes
from controlllm.probe.contract import PROBES, Finding
from controlllm.probe.drawing import coloured, figure, legend, scale_for, visible
from controlllm.probe.study import Study, Text

__all__ = ["per_token", "tokens"]

MOST_ROWS = 8
"""Tokens in the table of the largest changes."""


@PROBES.register("tokens")
def tokens(study: Study) -> Finding:
    """Each token of the texts, coloured by what the tuning did to it."""
    found = [per_token(study, text) for text in study.learn]
    kls, changes = [], []
    for text, (kl, change) in zip(study.learn, found, strict=True):
        kls += _targets(text, kl)
        changes += _targets(text, change)
    by_kl = scale_for(kls, "KL(base ‖ tuned) in nats, of the prediction of this token")
    by_change = scale_for(
        changes, "log p(tuned) − log p(base) in nats; blue: likelier now", signed=True
    )
    parts: list[Child] = [legend(by_kl), legend(by_change)]
    for number, (text, (kl, change)) in enumerate(zip(study.shown, found, strict=False), 1):
        pictures = [
            figure("KL(base ‖ tuned)", coloured(text.pieces, kl, by_kl, "KL")),
            figure("Change of log p", coloured(text.pieces, change, by_change, "log p")),
        ]
        parts += [tag("h3", f"Text {number}"), tag("div", pictures, class_="pair")]
        parts.append(_largest(text, kl, change))
    rose = sum(v > 0 for v in changes) / max(len(changes), 1)
    mean_kl, mean = (sum(x) / max(len(x), 1) for x in (kls, changes))
    return Finding(
        title="Where the tuned model speaks differently",
        shows="The texts, each token coloured by how far the tuned model's prediction of it lies "
        "from the base's (KL), and by how much likelier (blue) or unlikelier (orange) the tuned "
        "model finds the token that stands there.",
        look_for="On text of the new domain blue should prevail. Strong KL where log p hardly "
        "changes is a change of mind between other words; orange on plain words is forgetting. The "
        "first token is not predicted; prompts are coloured, and not counted.",
        result=f"Over {len(changes):,} tokens log p changes by {mean:+.3f} nats in the mean, KL is "
        f"{mean_kl:.3f}; {100 * rose:.0f} % of the tokens are likelier than before.",
        parts=parts,
    )


def per_token(study: Study, text: Text) -> tuple[list[float], list[float]]:
    """KL and change of log p of each token's prediction, in nats; nan for the first one."""
    with evaluating(study.model):
        changes = token_changes(study.model, study.tokenizer, text.ids[0].tolist())
    return [math.nan, *(one.kl for one in changes)], [math.nan, *(one.change for one in changes)]


def _targets(text: Text, values: list[float]) -> list[float]:
    """The values of the tokens that training aims at.

    The base gives tokens that were added since no probability at all: they are not rated.
    """
    rated = zip(text.labels[0].tolist(), values, strict=True)
    return [v for label, v in rated if label != IGNORE_INDEX and math.isfinite(v)]


def _largest(text: Text, kl: list[float], change: list[float]) -> Child:
    """The tokens whose predictions moved most."""
    order = sorted(range(1, len(kl)), key=lambda i: -kl[i])[:MOST_ROWS]
    rows = [
        tag(
            "tr",
            tag("td", i, class_="n"),
            tag("td", "".join(map(visible, text.pieces[max(0, i - 4) : i])), class_="t"),
            tag("td", tag("b", visible(text.pieces[i])), class_="t"),
            tag("td", f"{kl[i]:.3f}", class_="n"),
            tag("td", f"{change[i]:+.3f}".replace("-", "−"), class_="n"),
        )
        for i in order
    ]
    heads = ["place", "after", "token", "KL (nats)", "change of log p"]
    return tag(
        "details",
        tag("summary", "The largest changes, in numbers"),
        table(heads, tag("tbody", rows), numeric=(0, 3, 4)),
    )
