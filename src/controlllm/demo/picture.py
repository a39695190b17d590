"""The plane of forgetting and learning, as a PNG. matplotlib is imported only when it is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlllm.common.storage.files import atomic_file
from controlllm.demo.domains import NEW
from controlllm.demo.results import ON_OWN, Outcome, Results

if TYPE_CHECKING:
    from controlllm.evaluate import DialPoint

__all__ = ["draw"]

COLORS = ("#c8553d", "#8a8d91", "#1f6feb")
INK, FAINT = "#24292f", "#d0d7de"
NOTE_PIXELS = (34, 16)
"""Width and height of the room that a note needs, in pixels at 100 per inch."""


def draw(results: Results, path: Path) -> None:
    """Draw every method's curve: forgetting to the right, gain upwards; up and left is better.

    A filled circle is a model as it was trained, a star the dial's best setting within the budget.

    Args:
        results: at least one outcome.
        path: the file; written atomically.
    """
    # A Figure without pyplot: no global state, no window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.2), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    _set_limits(axes, results)
    _draw_budget(axes, results.outcomes[0].curve.max_forgetting)
    for outcome, color in zip(results.outcomes, COLORS, strict=False):
        _draw_outcome(axes, outcome, color)
    _note_settings(axes, results)
    axes.plot(0, 0, "o", markersize=10, color=INK, zorder=5, label="base")
    _dress(figure, axes)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=160)


def _set_limits(axes: Any, results: Results) -> None:
    """Room for every model as it was trained; settings that forget more leave the picture.

    Set first, so that distances on the picture are known when notes are placed.
    """
    points = [point for outcome in results.outcomes for point in outcome.curve.points]
    trained = [_xy_of(outcome.trained)[0] for outcome in results.outcomes]
    axes.set_xlim(*_padded([0.0, *trained, min(_xy(points)[0])]))
    axes.set_ylim(*_padded([0.0, *_xy(points)[1]]))


def _padded(values: list[float]) -> tuple[float, float]:
    """The range of the values with a margin; never empty."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _draw_budget(axes: Any, budget: float) -> None:
    axes.axvline(0, color=FAINT, linewidth=1, zorder=0)
    axes.axvline(budget, color="#2da44e", linewidth=1.2, linestyle=(0, (5, 4)), zorder=0)
    axes.text(
        budget, 0.015, f" budget: {budget:g} nats", transform=axes.get_xaxis_transform(),
        color="#2da44e", fontsize=9, va="bottom",
    )  # fmt: skip


def _draw_outcome(axes: Any, outcome: Outcome, color: str) -> None:
    """One curve, its trained model, its calibrated model, and the settings along it."""
    dialled = [point for point in outcome.curve.points if point.alpha is not None]
    label = f"{outcome.title} (dial: {outcome.dial})"
    axes.plot(*_xy(dialled), "-", color=color, linewidth=2, zorder=2, label=label)
    axes.plot(*_xy(dialled[1:]), ".", color=color, markersize=7, zorder=3)
    axes.plot(*_xy([outcome.trained]), "o", color=color, markersize=10, zorder=4)
    axes.plot(
        *_xy([outcome.chosen(ON_OWN)]), "*", color=color, markersize=19, zorder=6,
        markeredgecolor="white", markeredgewidth=1.2,
    )  # fmt: skip


def _note_settings(axes: Any, results: Results) -> None:
    """Settings in small print beside their points; none where it would cover another."""
    taken: list[Any] = []
    # The last method, which the story ends with, has the first choice, and the outer side.
    for outcome, color in reversed(list(zip(results.outcomes, COLORS, strict=False))):
        chosen, outer = outcome.chosen(ON_OWN), outcome is results.outcomes[-1]
        for point in (chosen, *outcome.curve.points):
            place = axes.transData.transform(_xy_of(point))
            crowded = any((abs(place - other) < NOTE_PIXELS).all() for other in taken)
            if point.alpha and not crowded and axes.viewLim.contains(*_xy_of(point)):
                taken.append(place)
                _note(axes, point, color, outer and point.alpha <= (chosen.alpha or 0))


def _note(axes: Any, point: "DialPoint", color: str, left: bool) -> None:
    """To the left of the point and above, or to the right and below."""
    axes.annotate(
        point.label, _xy_of(point), xytext=(-9, 6) if left else (8, -13),
        textcoords="offset points", ha="right" if left else "left", fontsize=8.5, color=color,
        zorder=7,
    )  # fmt: skip


def _dress(figure: Any, axes: Any) -> None:
    """Titles, labels, legend."""
    figure.suptitle(
        "Learning Python code: what each method gains, and what English it forgets",
        x=0.01, ha="left", fontsize=14, color=INK, fontweight="bold",
    )  # fmt: skip
    axes.set_title(
        "One small model, the same steps and batches for all, measured on held-out text. Each line "
        "turns one method's dial\nup from the base (0); small numbers are its settings. "
        "Up and to the left is better.",
        loc="left", fontsize=9.5, color="#57606a", linespacing=1.4,
    )  # fmt: skip
    axes.set_xlabel("forgetting: rise of the old domain's loss (nats per token)", color=INK)
    axes.set_ylabel("gain: fall of the new domain's loss (nats per token)", color=INK)
    axes.grid(color="#eaeef2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [*axes.get_legend_handles_labels()[0], *_marks()]
    axes.legend(handles=handles, loc="lower right", frameon=False, fontsize=9.5)


def _marks() -> list[Any]:
    """What circles and stars mean, for the legend."""
    from matplotlib.lines import Line2D

    meanings = {"o": "as trained", "*": "dial chosen on text that the base wrote"}
    return [
        Line2D([], [], marker=mark, linestyle="", color="#57606a", markersize=size, label=label)
        for (mark, label), size in zip(meanings.items(), (9, 14), strict=True)
    ]


def _xy(points: "list[DialPoint]") -> tuple[list[float], list[float]]:
    pairs = [_xy_of(point) for point in points]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _xy_of(point: "DialPoint") -> tuple[float, float]:
    return point.forgetting, point.learn[NEW].gain
