"""Pictures by hand: axes with ticks, lines, points with intervals; nothing is fetched or run.

Colours, widths and fonts are classes that the page's style gives a look in light and dark.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from controlllm.evaluate.judging.html import Child, Piece, tag
from controlllm.evaluate.statistics import Interval

__all__ = ["Axis", "Plot", "axis_for", "bar", "ticks"]

MOST_SERIES = 8
"""Colours that the style has."""


def ticks(low: float, high: float, most: int = 6, whole: bool = False) -> list[float]:
    """Round numbers between two bounds, at most so many; at least two, or `whole` ones only.

    >>> ticks(-0.3, 12.1)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    """
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(f for f in (1, 2, 5, 10) if (high - low) / (step * f) <= most + 0.5)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


@dataclass(frozen=True)
class Axis:
    """From values to places.

    Attributes:
        low: the smallest value.
        high: the largest one.
        label: what the values are, and their unit.
        whole: whether there is nothing between whole numbers.
    """

    low: float
    high: float
    label: str
    whole: bool = False

    @property
    def ticks(self) -> list[float]:
        """The values that are written beside it."""
        return ticks(self.low, self.high, whole=self.whole)

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1; what is outside lies at the end."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def axis_for(
    values: Iterable[float], label: str, around: Sequence[float] = (), whole: bool = False
) -> Axis:
    """An axis that shows all finite values, with a margin.

    Args:
        values: what is to be shown.
        label: what they are.
        around: values that it shows in any case.
        whole: whether there is nothing between whole numbers.
    """
    finite = [value for value in (*values, *around) if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin, label, whole)


class Plot:
    """One plane; parts are drawn in the order they are added.

    Args:
        x: the axis to the right.
        y: the axis upwards.
        title: what is seen, for those who cannot see it.
        width: in units of about a pixel; pages make it fit.
        height: likewise.
    """

    RIGHT, TOP, BOTTOM = 14, 12, 44

    def __init__(self, x: Axis, y: Axis, title: str, width: int = 420, height: int = 290) -> None:
        self.x, self.y, self.title = x, y, title
        self.width, self.height = width, height
        self.left = 25 + 7 * max([4, *(len(_written(value)) for value in y.ticks)])
        self._parts: list[Child] = [*self._grid()]
        self._labels: list[tuple[float, float, float, float]] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of two values."""
        wide = self.width - self.left - self.RIGHT
        high = self.height - self.TOP - self.BOTTOM
        return self.left + wide * self.x.share(x), self.TOP + high * (1 - self.y.share(y))

    def line(
        self, points: Sequence[tuple[float, float]], series: int, dashed: bool = False
    ) -> None:
        """Join points; where one is no finite number there is a gap."""
        look = f"line s{series % MOST_SERIES}{' dashed' if dashed else ''}"
        for part in _finite_parts(points):
            places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in part))
            self._parts.append(tag("polyline", points=places, class_=look))

    def point(
        self, x: Interval, y: Interval, series: int, label: str = "", title: str = ""
    ) -> None:
        """Draw a point with its intervals; an interval without extent is not drawn."""
        if not (math.isfinite(x.estimate) and math.isfinite(y.estimate)):
            return
        look = f"s{series % MOST_SERIES}"
        cx, cy = self.at(x.estimate, y.estimate)
        ends = []
        if x.low < x.high:
            (x1, _), (x2, _) = self.at(x.low, y.estimate), self.at(x.high, y.estimate)
            ends.append(tag("line", x1=x1, x2=x2, y1=cy, y2=cy, class_=f"whisker {look}"))
        if y.low < y.high:
            (_, y1), (_, y2) = self.at(x.estimate, y.low), self.at(x.estimate, y.high)
            ends.append(tag("line", x1=cx, x2=cx, y1=y1, y2=y2, class_=f"whisker {look}"))
        dot = tag(
            "circle", tag("title", title) if title else None, cx=cx, cy=cy, r=4.5, class_=look
        )
        self._parts += [ends, dot]
        if label:
            self._put_label(cx, cy, label)

    def _put_label(self, cx: float, cy: float, label: str) -> None:
        """Write beside a point where no other label is; nowhere, if there is no such place."""
        wide = 7.5 * len(label)
        for right, above in ((True, True), (True, False), (False, True), (False, False)):
            x, y = cx + (8 if right else -8), cy + (-7 if above else 16)
            box = (x if right else x - wide, y - 11, x + wide if right else x, y)
            inside = box[0] >= self.left and box[2] <= self.width and box[3] <= self.height
            if inside and not any(_overlap(box, other) for other in self._labels):
                anchor = "start" if right else "end"
                self._parts.append(tag("text", label, x=x, y=y, text_anchor=anchor, class_="label"))
                self._labels.append(box)
                return

    def rule(self, *, x: float | None = None, y: float | None = None) -> None:
        """Draw a straight line through the plane at one value of an axis."""
        left, top = self.left, self.TOP
        right, bottom = self.width - self.RIGHT, self.height - self.BOTTOM
        if x is not None:
            place = self.at(x, self.y.low)[0]
            self._parts.append(tag("line", x1=place, x2=place, y1=top, y2=bottom, class_="rule"))
        if y is not None:
            place = self.at(self.x.low, y)[1]
            self._parts.append(tag("line", x1=left, x2=right, y1=place, y2=place, class_="rule"))

    def drawn(self) -> Piece:
        """The picture."""
        return tag(
            "svg",
            tag("title", self.title),
            self._parts,
            viewBox=f"0 0 {self.width} {self.height}",
            role="img",
            class_="plot",
        )

    def _grid(self) -> Iterator[Piece]:
        right, bottom = self.width - self.RIGHT, self.height - self.BOTTOM
        for value in self.x.ticks:
            place = self.at(value, self.y.low)[0]
            yield tag("line", x1=place, x2=place, y1=self.TOP, y2=bottom, class_="grid")
            yield _tick(value, place, bottom + 15, "middle")
        for value in self.y.ticks:
            place = self.at(self.x.low, value)[1]
            yield tag("line", x1=self.left, x2=right, y1=place, y2=place, class_="grid")
            yield _tick(value, self.left - 6, place + 4, "end")
        middle, half = (self.left + right) / 2, (self.TOP + bottom) / 2
        yield tag(
            "text", self.x.label, x=middle, y=self.height - 8, text_anchor="middle", class_="axis"
        )
        yield tag(
            "text",
            self.y.label,
            x=0,
            y=0,
            transform=f"translate(12 {half:.1f}) rotate(-90)",
            text_anchor="middle",
            class_="axis",
        )


def bar(interval: Interval, reach: float, look: str, width: int = 200) -> Piece:
    """A difference and its interval as a small bar around 0.

    Args:
        interval: of the difference.
        reach: the value at either end; the same for all bars that are to be compared.
        look: a class: good, bad or open.
        width: in units of about a pixel.
    """
    axis, height = Axis(-reach, reach, ""), 18
    zero, middle = width / 2, height / 2
    low, place, high = (
        width * axis.share(value) for value in (interval.low, interval.estimate, interval.high)
    )
    return tag(
        "svg",
        tag("line", x1=zero, x2=zero, y1=0, y2=height, class_="zero"),
        tag("rect", x=low, y=middle - 4, width=max(high - low, 1.0), height=8, rx=2, class_=look),
        tag("line", x1=place, x2=place, y1=middle - 6, y2=middle + 6, class_="estimate"),
        viewBox=f"0 0 {width} {height}",
        class_="bar",
        aria_hidden="true",
    )


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    """Whether two boxes (left, top, right, bottom) have a place in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _tick(value: float, x: float, y: float, anchor: str) -> Piece:
    return tag("text", _written(value), x=x, y=y, text_anchor=anchor, class_="tick")


def _written(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _finite_parts(points: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    part: list[tuple[float, float]] = []
    for point in points:
        if all(map(math.isfinite, point)):
            part.append(point)
        elif part:
            yield part
            part = []
    if part:
        yield part
