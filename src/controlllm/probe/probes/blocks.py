"""Leave one block out: which blocks carry the learning, which the forgetting."""

from collections.abc import Sequence
from dataclasses import dataclass

from controlllm.common.text.progress import progress
from controlllm.evaluate import Interval, paired_bootstrap
from controlllm.evaluate.judging.html import Child, tag
from controlllm.evaluate.judging.svg import bar
from controlllm.evaluate.judging.tables import table
from controlllm.expansion.method.plan import ENDS
from controlllm.probe.contract import PROBES, Finding
from controlllm.probe.probes.reading import part_name
from controlllm.probe.study import Study, Text, own_dial

__all__ = ["Left", "blocks", "leave_one_out", "suggested"]

BAR = 120
"""Width of a bar; two of them stand in a row."""
Losses = list[tuple[float, int]]
"""Of each text: the sum of its cross-entropy, and its targets."""


@dataclass(frozen=True)
class Left:
    """What it does to leave one part at alpha 0.

    Attributes:
        part: a layer; -1 = the ends.
        gain_lost: how much the loss on what was learned rises, in nats per token.
        forgetting_avoided: how much the loss on what was to be kept falls; None without such texts.
    """

    part: int
    gain_lost: Interval
    forgetting_avoided: Interval | None


@PROBES.register("blocks")
def blocks(study: Study) -> Finding:
    """Each expanded block, and the ends, at alpha 0 alone: what it costs, and what it saves."""
    whole = [(study.losses(texts), study.losses(texts, base=True)) for texts in _sets(study)]
    left = leave_one_out(study, [tuned for tuned, _ in whole])
    layers = suggested(left)
    gain, *rest = (_mean_change(tuned, base) for tuned, base in whole)
    told = f"The loss on the learned texts {_moved(gain)} nats per token"
    if rest:
        told += f", on those to keep it {_moved(rest[0])}"
    best = max(left, key=lambda one: one.gain_lost.estimate)
    carries = f"most is carried by {part_name(best.part)} ({_shown(best.gain_lost)})"
    chosen = (
        f"Worth expanding again: layers {list(layers)}."
        if layers
        else ("No block surely carries learning on so few texts: nothing is suggested.")
    )
    note = (
        None
        if len(study.learn) > 1
        else tag("p", "One text has no spread: give more texts for intervals.", class_="soft")
    )
    return Finding(
        title="Leave one block out",
        shows="One row for each expanded block (and the expanded ends): the loss on the learned "
        "texts and on the texts to keep, when alpha is 0 in this part alone and stays as it is "
        "elsewhere. Intervals hold the true mean over texts with "
        f"{100 * study.settings.level:g} %.",
        look_for="A bar to the right under “gain lost”: this part carries learning. To the right "
        "under “forgetting avoided”: this part carries forgetting. Parts with neither could be "
        "spared. Blocks stand in for one another, so the rows do not add up to the whole.",
        result=f"{told}; {carries}. {chosen}",
        parts=[note, _table(left), _flow(layers)],
        scalars={"gain_lost": {one.part: one.gain_lost.estimate for one in left}}
        | (
            {
                "forgetting_avoided": {
                    o.part: o.forgetting_avoided.estimate for o in left if o.forgetting_avoided
                }
            }
            if rest
            else {}
        ),
        layers=layers,
    )


def _moved(gain: float) -> str:
    """Which way a loss went, and how far."""
    return f"{'rose' if gain < 0 else 'fell'} by {abs(gain):.3f}"


def leave_one_out(study: Study, whole: Sequence[Losses]) -> list[Left]:
    """Measure every part at alpha 0 alone.

    Args:
        study: the model and its texts.
        whole: losses of the model as it is: on what was learned, and on what is to be kept.
    """
    found = []
    with progress("leaving one block out", "parts", len(study.parts)) as line:
        for number, part in enumerate(study.parts, 1):
            with own_dial(study.model):
                study.model.set_alpha({part: 0.0})
                without = [study.losses(texts) for texts in _sets(study)]
            rises = [
                _rise(before, after, study.settings.level)
                for before, after in zip(whole, without, strict=True)
            ]
            avoided = _negated(rises[1]) if len(rises) > 1 else None
            found.append(Left(part, rises[0], avoided))
            line.show(number)
    return found


def suggested(left: Sequence[Left]) -> tuple[int, ...]:
    """Layers that surely carry learning, and more of it than of forgetting."""
    return tuple(
        one.part
        for one in left
        if one.part != ENDS
        and one.gain_lost.low > 0
        and (
            one.forgetting_avoided is None
            or one.forgetting_avoided.estimate <= one.gain_lost.estimate
        )
    )


def _sets(study: Study) -> list[Sequence[Text]]:
    return [study.learn, study.retain] if study.retain else [study.learn]


def _rise(before: Losses, after: Losses, level: float) -> Interval:
    """How much the token mean rose, with an interval over texts."""

    def mean(items: Sequence[int]) -> float:
        tokens = sum(before[i][1] for i in items)
        return sum(after[i][0] - before[i][0] for i in items) / max(tokens, 1)

    if len(before) < 2:
        return Interval(mean(range(len(before))), -float("inf"), float("inf"))
    return paired_bootstrap(mean, len(before), level=level)


def _mean_change(tuned: Losses, base: Losses) -> float:
    return (sum(x for x, _ in base) - sum(x for x, _ in tuned)) / max(sum(n for _, n in tuned), 1)


def _negated(one: Interval) -> Interval:
    return Interval(-one.estimate, -one.high, -one.low)


def _table(left: Sequence[Left]) -> Child:
    intervals = [i for one in left for i in (one.gain_lost, one.forgetting_avoided) if i]
    ends = [abs(v) for i in intervals for v in (i.low, i.high, i.estimate) if abs(v) < float("inf")]
    reach = max(ends, default=0.0) or 1.0
    rows = [
        tag(
            "tr",
            tag("th", part_name(one.part), scope="row"),
            _cells(one.gain_lost, reach, ("good", "bad")),
            _cells(one.forgetting_avoided, reach, ("bad", "good"))
            if one.forgetting_avoided
            else None,
            tag("td", _word(one), class_="carries"),
        )
        for one in left
    ]
    has_kept = any(one.forgetting_avoided for one in left)
    heads = [
        "alpha 0 in",
        "gain lost",
        "",
        *(["forgetting avoided", ""] if has_kept else []),
        "carries",
    ]
    return table(heads, tag("tbody", rows))


def _cells(one: Interval, reach: float, looks: tuple[str, str]) -> Child:
    """A number and its bar; `looks` are those of what is surely above 0, and surely below."""
    look = looks[0] if one.low > 0 else looks[1] if one.high < 0 else "open"
    return [tag("td", _shown(one), class_="t"), tag("td", bar(one, reach, look, BAR))]


def _shown(one: Interval) -> str:
    told = str(one) if one.high < float("inf") else f"{one.estimate:+.4f}"
    return told.replace("-", "−")


def _word(one: Left) -> str:
    avoided = one.forgetting_avoided
    found = ["learning"] if one.gain_lost.low > 0 else []
    found += ["forgetting"] if avoided is not None and avoided.low > 0 else []
    return " and ".join(found) or "neither, surely"


def _flow(layers: tuple[int, ...]) -> Child:
    if not layers:
        return None
    return [
        tag("h3", "To expand these only"),
        tag("pre", f"expansion:\n  num_blocks: null\n  layers: {list(layers)}"),
        tag(
            "p",
            tag("code", "controlllm probe ... --layers layers.yaml"),
            " writes this file; ",
            tag("code", "controlllm train --config run.yaml --config layers.yaml"),
            " trains with it.",
            class_="soft",
        ),
    ]
