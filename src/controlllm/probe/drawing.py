"""Heat maps and coloured texts, as pieces of a page.

A value becomes one of a few shades (classes that the page's style knows), so a page needs no style
of its own for any value, and looks right in the dark and on paper.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controlllm.evaluate.judging.html import Child, Piece, tag

__all__ = ["SHADES", "Scale", "coloured", "figure", "heat_map", "legend", "scale_for", "visible"]

SHADES = 10
"""Shades of a colour beside none."""
CELL_HEIGHT, LABEL = 17, 108
LONGEST_LABEL = 14


@dataclass(frozen=True)
class Scale:
    """From values to shades.

    Attributes:
        high: the value of the strongest shade.
        unit: what the values are.
        signed: whether values below 0 have a colour of their own; else 0 and below have none.
        low: the value without colour, of an unsigned scale.
    """

    high: float
    unit: str
    signed: bool = False
    low: float = 0.0

    def shade(self, value: float) -> str:
        """The class of a value; what is no number looks like nothing else."""
        if not math.isfinite(value):
            return "none"
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        number = min(SHADES, round(abs(share) * SHADES))
        if share < 0 and not self.signed:
            number = 0
        return f"{'m' if share < 0 and self.signed and number else 'q'}{number}"


def scale_for(values: Iterable[float], unit: str, signed: bool = False, low: float = 0.0) -> Scale:
    """A scale that ends where 98 of 100 values do: a single outlier does not blanch the rest."""
    sizes = sorted(abs(v - low) for v in values if math.isfinite(v))
    end = sizes[math.ceil(0.98 * len(sizes)) - 1] if sizes else 1.0
    return Scale(low + (end or (sizes[-1] if sizes else 1.0) or 1.0), unit, signed, low)


def visible(text: str) -> str:
    """What a token adds, in one line; spaces and line ends are shown."""
    shown = text.translate({32: "·", 0xA0: "⍽", 10: "↵", 13: "␍", 9: "⇥"})
    return (shown if len(shown) <= LONGEST_LABEL else shown[: LONGEST_LABEL - 1] + "…") or "∅"


def heat_map(
    rows: Sequence[tuple[str, Sequence[float]]],
    columns: Sequence[str],
    scale: Scale,
    title: str,
    width: int = 15,
) -> Piece:
    """One cell for each row and column; it scrolls inside its box where it is wide.

    What is no number has no cell.

    Args:
        rows: label and values of each, the upper ones first.
        columns: labels.
        scale: of the values.
        title: what is seen, for those who cannot see it.
        width: of a cell, in about pixels.
    """
    longest = max((len(visible(name)) for name in columns), default=0)
    top = 10 + round(6.4 * longest)
    bottom = top + CELL_HEIGHT * len(rows)
    cells: list[Child] = []
    for number, name in enumerate(columns):
        x = LABEL + width * number + width / 2 + 4
        turned = f"translate({x:.1f} {top - 6}) rotate(-90)"
        cells.append(tag("text", visible(name), x=0, y=0, transform=turned, class_="token"))
    for line, (label, values) in enumerate(rows):
        y = top + CELL_HEIGHT * line
        name = tag("text", label, x=LABEL - 8, y=y + 13, text_anchor="end", class_="tick")
        cells.append(name)
        cells += [
            tag(
                "rect",
                tag("title", f"{label}, {visible(columns[number])}: {value:.3g}"),
                x=LABEL + width * number,
                y=y,
                width=width - 1,
                height=CELL_HEIGHT - 1,
                class_=scale.shade(value),
            )
            for number, value in enumerate(values)
            if math.isfinite(value)
        ]
    wide = LABEL + width * len(columns) + 4
    drawn = tag(
        "svg",
        tag("title", title),
        cells,
        viewBox=f"0 0 {wide} {bottom + 4}",
        width=wide,
        height=bottom + 4,
        role="img",
        class_="plot heat",
    )
    return tag("div", drawn, class_="scroll", tabindex=0)


def coloured(pieces: Sequence[str], values: Sequence[float], scale: Scale, told: str) -> Piece:
    """A text whose tokens have the colours of their values; `told` is said of each on hovering."""
    spans = [
        tag(
            "span",
            piece or "▯",
            class_=f"tok {scale.shade(value)}",
            title=f"{visible(piece)}: {told} {value:+.3f}" if math.isfinite(value) else "not rated",
        )
        for piece, value in zip(pieces, values, strict=True)
    ]
    return tag("pre", spans, class_="tokens")


def legend(scale: Scale) -> Piece:
    """What the shades mean."""
    shades = [f"q{number}" for number in range(SHADES + 1)]
    low = scale.low
    if scale.signed:
        shades = [f"m{number}" for number in range(SHADES, 0, -1)] + shades
        low = 2 * scale.low - scale.high
    boxes = [tag("span", class_=f"box {shade}") for shade in shades]
    ends = (f"{value:.2g}".replace("-", "−") for value in (low, scale.high))
    first, last = ends
    more = "≤ " if scale.signed else ""
    return tag(
        "p",
        tag("span", f"{more}{first} ", class_="end"),
        tag("span", boxes, class_="boxes", aria_hidden="true"),
        tag("span", f" ≥ {last}  ", class_="end"),
        scale.unit,
        class_="scale",
    )


def figure(title: str, *parts: Child, caption: str = "") -> Piece:
    """A picture with its name."""
    said = tag("figcaption", caption) if caption else None
    return tag("figure", tag("h3", title), parts, said, class_="wide")
