"""Texts of a report: items that one of two models had right, and samples from training."""

from collections.abc import Sequence

from controlllm.evaluate.items.comparison import Change
from controlllm.evaluate.items.records import READINGS, Item
from controlllm.evaluate.judging import words
from controlllm.evaluate.judging.html import LONGEST, Child, Piece, tag
from controlllm.evaluate.judging.models import Model
from controlllm.evaluate.judging.runs import Run

__all__ = ["flipped_items", "sample_texts"]

MOST_FILES = 12
MOST_SAMPLES = 5
"""Texts shown of one file."""


def flipped_items(model: Model, most: int) -> list[Piece]:
    """Per benchmark the items that base or model had right and the other wrong, side by side.

    Args:
        model: which.
        most: how many items of each benchmark are shown, lost and won ones in turn.
    """
    return [
        _benchmark(row.change, flipped, most)
        for row in model.rows
        if (flipped := row.change.flipped())
    ]


def sample_texts(run: Run) -> list[Piece]:
    """Texts that base and model wrote to the prompts of held-out sets, when last asked."""
    shown = list(run.samples.items())[:MOST_FILES]
    return [
        tag(
            "details",
            tag("summary", f"{name}: {len(texts):,} texts"),
            [
                tag(
                    "article",
                    _titled("prompt", text.prompt),
                    _titled("reference", text.reference),
                    tag(
                        "div",
                        tag("div", _titled("base", text.base)) if text.base is not None else None,
                        tag("div", _titled("model", text.tuned)),
                        class_="pair",
                    ),
                )
                for text in texts[:MOST_SAMPLES]
            ],
            tag("p", f"The first {MOST_SAMPLES} are shown.", class_="soft")
            if len(texts) > MOST_SAMPLES
            else None,
        )
        for name, texts in shown
    ]


def _benchmark(change: Change, flipped: Sequence[tuple[Item, Item]], most: int) -> Piece:
    name = next(one for one in ("strict", "choice", "lenient") if one in change.readings)
    lost = [pair for pair in flipped if _read(pair[0], name) > _read(pair[1], name)]
    won = [pair for pair in flipped if _read(pair[0], name) < _read(pair[1], name)]
    shown = _in_turn(lost, won, most)
    told = f"{change.benchmark.name}: {len(lost):,} lost, {len(won):,} won ({words.NAMES[name]})"
    return tag(
        "details",
        tag("summary", told),
        tag("p", f"{len(shown):,} of {len(flipped):,} are shown.", class_="soft"),
        [_item(base, item, change.label, (base, item) in lost) for base, item in shown],
    )


def _in_turn(
    lost: list[tuple[Item, Item]], won: list[tuple[Item, Item]], most: int
) -> list[tuple[Item, Item]]:
    few = min(len(lost), max(most - most // 2, most - len(won)))
    return _spread(lost, few) + _spread(won, most - few)


def _spread(pairs: list[tuple[Item, Item]], count: int) -> list[tuple[Item, Item]]:
    """So many of them, from all over the benchmark."""
    count = min(count, len(pairs))
    return [pairs[number * len(pairs) // count] for number in range(count)]


def _item(base: Item, item: Item, label: str, lost: bool) -> Piece:
    verdict = tag("strong", "lost" if lost else "won", class_=f"word {'bad' if lost else 'good'}")
    return tag(
        "article",
        tag("h3", verdict, f" {item.task}, document {item.doc}"),
        _titled("question", item.question, from_the_end=True),
        _titled("right answer", item.gold),
        tag("div", _answer(base, "base"), _answer(item, label), class_="pair"),
    )


def _answer(item: Item, label: str) -> Piece:
    told = [
        f"{words.NAMES[name]} {words.value(name, value)}"
        if name == "bits_per_byte"
        else f"{words.NAMES[name]} {_right(value)}"
        for name in READINGS
        if (value := item.reading(name)) is not None
    ]
    told += ["not in the format"] if item.in_format is False else []
    told += ["cut off"] if item.cut_off else []
    answer = "(no text was kept)" if item.answer is None else item.answer
    return tag("div", _titled(label, answer), tag("small", " · ".join(told)))


def _right(value: float) -> str:
    return {1.0: "right", 0.0: "wrong"}.get(value, f"{value:.2f}")


def _read(item: Item, name: str) -> float:
    return item.reading(name) or 0.0


def _titled(title: str, text: str, from_the_end: bool = False) -> Child:
    """A text under its title; of a long one the beginning or the end, which is said."""
    shown = text
    if len(text) > LONGEST:
        shown = text[-LONGEST:] if from_the_end else text[:LONGEST]
        part = "last" if from_the_end else "first"
        title = f"{title} (the {part} {LONGEST:,} of {len(text):,} characters)"
    return [tag("small", title), tag("pre", shown, dir="auto")]
