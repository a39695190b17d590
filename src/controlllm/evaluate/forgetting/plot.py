"""Pictures of learning and forgetting. matplotlib is imported here, and only when one is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from controlllm.common.storage.files import atomic_file
from controlllm.evaluate.forgetting.dial import DialCurve, DialPoint

__all__ = ["plot_curves"]

LABEL_PIXELS = (34, 15)
"""Width and height of the room that a label needs, at 100 pixels per inch."""


def plot_curves(curves: Mapping[str, DialCurve], path: str | Path) -> None:
    """Draw dial curves in one plane: forgetting to the right, learn loss upwards, as a PNG.

    Left and low is better. A star is the chosen setting, a cross the model as it was trained, and
    the budgets are vertical lines. With one curve every point is labelled with its setting; with
    several, the legend says what was chosen.

    Args:
        curves: by the name in the legend.
        path: the file; written atomically, its folder is created.
    """
    # A Figure without pyplot: no global state, no window system, whatever back end the user has.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.0), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, curve) in enumerate(curves.items()):
        _draw_curve(axes, f"{name} (chosen: {curve.chosen.label})", curve, f"C{number}")
        if len(curves) == 1:
            _label_points(axes, curve)
    for budget in sorted({curve.max_forgetting for curve in curves.values()}):
        axes.axvline(budget, color="0.5", linestyle="--", linewidth=1, label=f"budget {budget:g}")
    axes.plot([], [], marker="*", markersize=11, linestyle="none", color="0.3", label="chosen")
    axes.plot([], [], marker="x", linestyle="none", color="0.3", label="as trained")
    axes.set_xlabel("forgetting: rise of the loss of the worst retain set (nats per token)")
    axes.set_ylabel("learn loss (nats per token)")
    axes.set_title("Every setting of each dial: left and low is better", loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_curve(axes: Any, label: str, curve: DialCurve, color: str) -> None:
    dialled = [point for point in curve.points if not point.is_trained]
    line = "-" if curve.on_a_line else "none"
    axes.plot(*_xy(dialled), marker="o", markersize=3, linestyle=line, color=color, label=label)
    trained = [point for point in curve.points if point.is_trained]
    axes.plot(*_xy(trained), marker="x", linestyle="none", color=color)
    axes.plot(*_xy([curve.chosen]), marker="*", markersize=13, linestyle="none", color=color)


def _label_points(axes: Any, curve: DialCurve) -> None:
    """Settings beside their points: the chosen one first, none where it would cover another."""
    taken: list[Any] = []
    for point in (curve.chosen, *curve.points):
        xy = (point.forgetting, point.learn_loss)
        place = axes.transData.transform(xy)
        if any((abs(place - other) < LABEL_PIXELS).all() for other in taken):
            continue
        taken.append(place)
        axes.annotate(
            point.label, xy, xytext=(7, 5), textcoords="offset points", fontsize=8, color="0.3"
        )


def _xy(points: Sequence[DialPoint]) -> tuple[list[float], list[float]]:
    return [point.forgetting for point in points], [point.learn_loss for point in points]
