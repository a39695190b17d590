"""Pictures of a report: what was learned against what was lost, the dial, and losses in time."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from controlllm.evaluate.forgetting.alphas import told_setting
from controlllm.evaluate.items.comparison import Reading
from controlllm.evaluate.items.records import READINGS
from controlllm.evaluate.judging import words
from controlllm.evaluate.judging.html import Child, Piece, tag
from controlllm.evaluate.judging.models import Model, primary
from controlllm.evaluate.judging.runs import Run
from controlllm.evaluate.judging.svg import Axis, Plot, axis_for
from controlllm.evaluate.statistics import Interval, mean_difference

__all__ = [
    "benchmark_dials",
    "calibration_curve",
    "learn_forget_plane",
    "loss_curves",
    "own_text_curves",
    "sets_plane",
    "text_curves",
]

POINT = 100
"""Points of a difference of 1."""
LEARN, RETAIN = "Losses of the sets to learn", "Forgetting of the sets to retain"
OWN = "KL on own text"
MOST = 12
"""Pictures of one kind."""
APART = 0.02
"""How far curves stand beside one another, as a share of the axis."""


def learn_forget_plane(models: Sequence[Model], learned: Sequence[str]) -> Child:
    """The mean gain on what was to be learned against the mean loss on the rest, with intervals.

    Rates only: bits per byte are of another unit. Models without both kinds are left out; None
    where none is left.
    """
    points = []
    for model in models:
        rates = {
            row.change.benchmark.name: found
            for row in model.rows
            if (found := primary(row.change)) is not None and READINGS[found.name]
        }
        gains = [one for name, one in rates.items() if name in learned]
        losses = [one for name, one in rates.items() if name not in learned]
        if gains and losses:
            points.append((model.name, _mean(losses, -POINT), _mean(gains, POINT)))
    if not points:
        return None
    x = axis_for(
        [end for _, x, _ in points for end in (x.estimate, x.low, x.high)],
        "lost on the kept ones (points)",
        [0],
    )
    y = axis_for(
        [end for _, _, y in points for end in (y.estimate, y.low, y.high)],
        "gained on the learned ones (points)",
        [0],
    )
    return _plane(Plot(x, y, "Gain against loss of each model"), points)


def sets_plane(runs: Sequence[Run]) -> Child:
    """The same of the held-out sets of each run, in nats per token, at the end of its training."""
    points = []
    for run in runs:
        last = run.history[-1] if run.history else {}
        gains = [v for k, v in last.items() if k.startswith("learn/") and k.endswith("/gain")]
        losses = [
            v for k, v in last.items() if k.startswith("retain/") and k.endswith("/forgetting")
        ]
        if gains and losses and all(map(math.isfinite, [*gains, *losses])):
            gain = sum(gains) / len(gains)
            points.append((run.name, _point(max(losses)), _point(gain)))
    if not points:
        return None
    x = axis_for([x.estimate for _, x, _ in points], "worst forgetting (nats per token)", [0])
    y = axis_for([y.estimate for _, _, y in points], "mean gain (nats per token)", [0])
    return _plane(Plot(x, y, "Gain against forgetting of the held-out sets"), points)


def benchmark_dials(models: Sequence[Model]) -> Iterator[Piece]:
    """For each benchmark the difference from the base at each alpha that was measured."""
    dialled = sorted((m for m in models if m.alpha is not None), key=lambda m: m.alpha or 0.0)
    benchmarks = dict.fromkeys(
        (row.suite, row.change.benchmark.name) for model in dialled for row in model.rows
    )
    for suite, name in benchmarks:
        curves: dict[str, list[tuple[float, Interval]]] = {}
        for model in dialled:
            for row in model.rows:
                if (row.suite, row.change.benchmark.name) == (suite, name):
                    for reading in _of_one_unit(row.change.readings):
                        found = reading.difference.interval()
                        curves.setdefault(reading.name, []).append((model.alpha or 0.0, found))
        if curves:
            yield _dial(name, curves)


def calibration_curve(curve: dict[str, Any]) -> Piece:
    """Learn loss against forgetting at every setting of the dial, as `calibrate` measured them."""
    points = curve["points"]
    x = axis_for(
        [point["forgetting"] for point in points],
        "forgetting of the worst retain set (nats per token)",
        [0.0, curve["max_forgetting"]],
    )
    y = axis_for([point["learn_loss"] for point in points], "learn loss (nats per token)")
    plot = Plot(x, y, "Learn loss against forgetting along the dial")
    plot.rule(x=curve["max_forgetting"])
    dialled = [point for point in points if isinstance(point["alpha"], float | int)]
    plot.line([(point["forgetting"], point["learn_loss"]) for point in dialled], 0)
    for point in sorted(points, key=lambda point: point["alpha"] != curve["chosen"]):
        label = told_setting(point["alpha"])
        chosen = point["alpha"] == curve["chosen"]
        plot.point(
            _point(point["forgetting"]),
            _point(point["learn_loss"]),
            series=1 if chosen else 0,
            label=f"{label} (chosen)" if chosen else label,
        )
    budget = f"dashed: the budget of {curve['max_forgetting']:g}"
    caption = f"Numbers beside points: {curve['dial']}; {budget}. Low and left is better."
    return _figure(plot, [], caption, "Calibration")


def loss_curves(run: Run) -> Iterator[Piece]:
    """Losses of the sets to learn, and how far those of the sets to retain rose, step by step."""
    learn = _curves(run, "learn", "loss")
    base = _curves(run, "learn", "base_loss")
    if learn:
        plot = Plot(_steps(learn), _values([*learn.values(), *base.values()], "loss"), LEARN)
        for series, (name, line) in enumerate(learn.items()):
            plot.line(base.get(name, []), series, dashed=True)
            plot.line(line, series)
        yield _figure(plot, list(learn), "Dashed: the base.", LEARN)
    retain = _curves(run, "retain", "forgetting")
    if retain:
        plot = Plot(_steps(retain), _values(retain.values(), "forgetting", [0]), RETAIN)
        plot.rule(y=0)
        for series, line in enumerate(retain.values()):
            plot.line(line, series)
        yield _figure(plot, list(retain), "How far the loss is above the base's.", RETAIN)


def own_text_curves(run: Run) -> Iterator[Piece]:
    """KL on what base and earlier stages wrote, with its upper bound, step by step."""
    upper = _curves(run, "retain", "kl_upper")
    kl = {name: line for name, line in _curves(run, "retain", "kl").items() if name in upper}
    if kl:
        plot = Plot(_steps(kl), _values([*kl.values(), *upper.values()], "KL", [0]), OWN)
        for series, (name, line) in enumerate(kl.items()):
            plot.line(upper[name], series, dashed=True)
            plot.line(line, series)
        yield _figure(plot, list(kl), "Dashed: the upper bound (95 %).", OWN)


def text_curves(run: Run) -> Iterator[Piece]:
    """Numbers of the texts that a run wrote for held-out sets, step by step; the base's dashed."""
    keys = dict.fromkeys(k for row in run.history for k in row if k.startswith("generation/"))
    names = [tuple(key.split("/", 1)[1].rsplit("/", 1)) for key in keys]
    for name, number in [pair for pair in names if (pair[0], f"base_{pair[-1]}") in names][:MOST]:
        tuned, base = (
            _curves(run, "generation", what).get(name, []) for what in (number, f"base_{number}")
        )
        if tuned:
            title = f"{name}: {number}"
            plot = Plot(
                _steps({name: tuned}), axis_for([y for _, y in tuned + base], number), title
            )
            plot.line(base, 0, dashed=True)
            plot.line(tuned, 0)
            yield _figure(plot, [], "Texts of a held-out set. Dashed: the base.", title)


def _curves(run: Run, kind: str, what: str) -> dict[str, list[tuple[float, float]]]:
    """A metric of the sets of a kind, by their names: (step, value), if any is finite."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in run.history:
        for key, value in row.items():
            if key.startswith(f"{kind}/") and key.endswith(f"/{what}"):
                name = key.removeprefix(f"{kind}/").removesuffix(f"/{what}")
                curves.setdefault(name, []).append((row["step"], value))
    return {n: line for n, line in curves.items() if any(math.isfinite(y) for _, y in line)}


def _steps(curves: dict[str, list[tuple[float, float]]]) -> Axis:
    return axis_for([step for line in curves.values() for step, _ in line], "step")


def _values(
    lines: Iterable[list[tuple[float, float]]], what: str, around: Sequence[float] = ()
) -> Axis:
    return axis_for([y for line in lines for _, y in line], f"{what} (nats per token)", around)


def _plane(plot: Plot, points: Sequence[tuple[str, Interval, Interval]]) -> Piece:
    plot.rule(x=0)
    plot.rule(y=0)
    for series, (name, x, y) in enumerate(points):
        title = f"{name}: lost {x.estimate:.2f}, gained {y.estimate:.2f}"
        plot.point(x, y, series, str(series + 1), title)
    names = [f"{number}: {name}" for number, (name, _, _) in enumerate(points, 1)]
    return _figure(plot, names, "The base is where the dashed lines cross. Up and left is better.")


def _dial(name: str, curves: dict[str, list[tuple[float, Interval]]]) -> Piece:
    rates = any(READINGS[reading] for reading in curves)
    scale, unit = (POINT, "points") if rates else (1, "bits per byte")
    ends = [scale * e for line in curves.values() for _, i in line for e in (i.low, i.high)]
    alphas = [alpha for line in curves.values() for alpha, _ in line]
    x, y = axis_for(alphas, "alpha (0 is the base)", [0]), axis_for(ends, unit, [0])
    plot = Plot(x, y, f"{name} along the dial", height=240)
    plot.rule(y=0)
    for series, line in enumerate(curves.values()):
        plot.line([(0.0, 0.0), *((alpha, scale * one.estimate) for alpha, one in line)], series)
        for alpha, one in line:
            beside = alpha + APART * series * (x.high - x.low)  # Else one would hide the other.
            found = Interval(scale * one.estimate, scale * one.low, scale * one.high)
            plot.point(_point(beside), found, series)
    legend = [words.NAMES[reading] for reading in curves]
    return _figure(plot, legend, "Difference from the base, 95 %.", name)


def _of_one_unit(readings: dict[str, Reading]) -> list[Reading]:
    """The rates; bits per byte where there is none."""
    rates = [one for name, one in readings.items() if READINGS[name]]
    return rates or [*readings.values()]


def _mean(readings: Sequence[Reading], scale: float) -> Interval:
    """The mean difference of several benchmarks, which are independent of one another."""
    mean = mean_difference([reading.difference for reading in readings]).interval()
    low, high = sorted((scale * mean.low, scale * mean.high))
    return Interval(scale * mean.estimate, low, high)


def _point(value: float) -> Interval:
    return Interval(value, value, value)


def _figure(plot: Plot, legend: Sequence[str], caption: str, title: str = "") -> Piece:
    entries = [
        tag("li", tag("span", class_=f"s{number % 8}"), name) for number, name in enumerate(legend)
    ]
    return tag(
        "figure",
        tag("h3", title) if title else None,
        plot.drawn(),
        tag("ul", entries, class_="legend") if entries else None,
        tag("figcaption", caption),
    )
