"""Texts for people: prompt, reference, and what the base and the trained model wrote."""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from controlllm.common.text.readable import readable

__all__ = ["Compared", "Sample", "as_markdown"]

_LONGEST = 2000
"""Characters of a text that a table shows."""


@dataclass(frozen=True)
class Sample:
    """One row of a set.

    Attributes:
        row: its number in the set, from 0.
        prompt: as it was given to the model.
        reference: the right answer.
        base: what the base wrote; None where that is not known.
        tuned: what the trained model wrote.
    """

    row: int
    prompt: str
    reference: str
    base: str | None
    tuned: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Compared:
    """A number of base and trained model.

    Attributes:
        name: of the number.
        base: the base's.
        tuned: the trained model's.
        higher_is_better: whether a larger one is better.
    """

    name: str
    base: float
    tuned: float
    higher_is_better: bool

    @property
    def verdict(self) -> str:
        """Which of the two is better; nothing where neither is, or one is not a number."""
        change = self.tuned - self.base
        if not change or math.isnan(change):
            return ""
        return "better" if (change > 0) == self.higher_is_better else "worse"


def as_markdown(title: str, samples: Sequence[Sample], compared: Sequence[Compared] = ()) -> str:
    """Samples one after another, each text as it is: no mark-up inside takes effect.

    Args:
        title: the heading.
        samples: rows.
        compared: numbers that come first, as a table.
    """
    lines = [f"# {_inline(title)}", ""]
    if compared:
        lines += ["| number | base | tuned | |", "|---|---:|---:|---|"]
        lines += [
            f"| {_inline(one.name)} | {one.base:.4g} | {one.tuned:.4g} | {one.verdict} |"
            for one in compared
        ]
        lines.append("")
    for sample in samples:
        lines += [f"## Row {sample.row}", ""]
        texts = {"Prompt": sample.prompt, "Reference": sample.reference}
        if sample.base is not None:
            texts["Base"] = sample.base
        for heading, text in {**texts, "Tuned": sample.tuned}.items():
            lines += [f"**{heading}**", "", *_block(text), ""]
    return "\n".join(lines)


def _block(text: str) -> list[str]:
    """A code block whose fence is longer than any inside, so that no text can end it."""
    text = readable(text)
    cut = len(text) - _LONGEST
    text = text if cut <= 0 else f"{text[:_LONGEST]}\n(... {cut:,} more characters)"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *text.split("\n"), fence]


def _inline(text: str) -> str:
    """A text within a line of Markdown."""
    text = html.escape(readable(text).replace("\n", " "), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#|!])", r"\\\1", text)
