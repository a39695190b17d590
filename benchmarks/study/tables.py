"""Tables and the picture of a study, from the cells that are there."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from benchmarks.study.fronts import front_tables
from benchmarks.study.measuring import AS_TRAINED
from benchmarks.study.plan import Study
from benchmarks.study.records import Result
from benchmarks.study.told import Told, told, yardstick

from controlllm.evaluate import format_table
from controlllm.evaluate.statistics import paired_difference

__all__ = ["draw", "page_tables", "tables"]

_FRONTS = "% of the gain of {} at equal KL on told own text, and KL at equal shares"
LEAST_KL = 1e-4
"""What is below is drawn here, on an axis that knows no 0."""


def tables(study: Study, results: Sequence[Result]) -> str:
    """One table for each shift and setting."""
    parts = []
    labels = [AS_TRAINED, *(f"KL {budget:g}" for budget in study.budgets)]
    for shift in study.shifts:
        best = yardstick(study, results, shift)
        if best is None:
            parts.append(f"{shift}: no cell of {study.yardstick}, the yardstick, is done yet.")
            continue
        most, base = best.gain, best.mean("new", "base")
        for label in labels:
            rows = list(told(study, results, shift, label))
            title = f"{shift}, {label} (base {base:.3f}; {study.yardstick} gains {most:.3f})"
            parts.append(f"{title}\n\n{_table(study, rows, most)}")
            if study.benchmarks:
                parts.append(_items_table(study, rows))
        if fronts := front_tables(study, results, shift):
            parts.append(f"{shift}, {_FRONTS.format(study.yardstick)}\n\n{fronts}")
    return "\n\n".join(parts)


def _items_table(study: Study, rows: Sequence[Told]) -> str:
    """What was asked of base and model, question by question; a question's seeds are averaged."""
    lines = []
    for row in rows:
        found = [r["items"][row.setting] for r in row.results if r["items"]]
        for name in study.benchmarks if found else ():
            asked = np.mean([one[name] for one in found], axis=0)
            base, right, bits, bits_now = asked.T
            apart = paired_difference(list(bits), list(bits_now)).interval()
            each = [np.array(one[name]) for one in found]
            lost = statistics.mean(float((one[:, 0] > one[:, 1]).sum()) for one in each)
            won = statistics.mean(float((one[:, 0] < one[:, 1]).sum()) for one in each)
            lines.append(
                [
                    *(row.arm, name, len(asked), f"{100 * base.mean():.1f}"),
                    *(f"{100 * right.mean():.1f}", f"{lost:.1f}", f"{won:.1f}", str(apart)),
                ]
            )
    headers = ["arm", "benchmark", "n", "base %", "right %", "1->0", "0->1", "bits per byte +"]
    return format_table(headers, lines)


def _table(study: Study, rows: Sequence[Told], most: float) -> str:
    other = {row.arm: row for row in rows}.get(str(study.compared_with))
    own = rows[0].own
    headers = ["arm", "rate", "seeds", "dial", "new", "gain %", f"ahead of {study.compared_with}"]
    headers += [f"KL {name}" for name in own] + [f"{name} +" for name in study.kept]
    headers += ["trained", "seconds"]
    lines = []
    for row in rows:
        dials = [r["settings"][row.setting]["dial"] for r in row.results]
        seconds = [r["seconds"] for r in row.results if r["seconds"] is not None]
        ahead = row.ahead_of(other) if other is not None and other.arm != row.arm else []
        lines.append(
            [
                row.arm,
                f"{row.rate:g}",
                len(row.results),
                "-" if None in dials else _spread(dials, ".2f"),
                _spread(row.values("new")),
                f"{100 * row.gain / most:.1f}" if most > 0 else "-",
                _spread(ahead, "+.3f") if ahead else "-",
                *(_spread(row.values(name, "kl")) for name in own),
                *(_spread(row.values(name, "rise"), "+.3f") for name in study.kept),
                row.results[0]["trained_parameters"],
                f"{statistics.mean(seconds):.0f}" if seconds else "-",
            ]
        )
    return format_table(headers, lines)


def page_tables(study: Study, results: Sequence[Result]) -> str:
    """For a page: one table for each shift, in a cell what was learned and what was forgotten."""
    labels = [*(f"KL {budget:g}" for budget in study.budgets), AS_TRAINED]
    parts = []
    for shift in study.shifts:
        best = yardstick(study, results, shift)
        if best is None:
            continue
        at = {label: {t.arm: t for t in told(study, results, shift, label)} for label in labels}
        lines = []
        for arm in at[AS_TRAINED]:
            seeds = sorted({len(at[label][arm].results) for label in labels})
            cells = [_page_cell(study, at[label][arm], best.gain) for label in labels]
            lines.append([arm, "/".join(map(str, seeds)), *cells])
        base = best.mean("new", "base")
        title = f"**{shift}** (base {base:.3f}; {study.yardstick} gains {best.gain:.3f})"
        parts.append(f"{title}\n\n{format_table(['way', 'seeds', *labels], lines)}")
        if fronts := front_tables(study, results, shift):
            parts.append(f"{_FRONTS.format(study.yardstick)}\n\n{fronts}")
    return "\n\n".join(parts)


def _page_cell(study: Study, one: Told, most: float) -> str:
    gain = f" ({100 * one.gain / most:.1f} %)" if most > 0 else ""
    rises = [f"{one.mean(name, 'rise'):+.3f}" for name in study.kept]
    moved = " / ".join(f"{one.mean(name, 'kl'):.3f}" for name in one.own)
    kl = f", KL {moved}" if one.setting == AS_TRAINED else ""
    return f"{_spread(one.values('new'))}{gain} / {' / '.join(rises)}{kl}"


def _spread(values: Sequence[float], form: str = ".3f") -> str:
    """The mean, and half of what lies between the lowest and the highest."""
    mean = format(statistics.mean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ± {(max(values) - min(values)) / 2:{form.replace('+', '')}}"


def draw(study: Study, results: Sequence[Result], path: Path) -> None:
    """For each shift: share of the yardstick's gain against KL on own text, a line for each arm."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    labels = [*(f"KL {budget:g}" for budget in study.budgets), AS_TRAINED]
    figure, axes = plt.subplots(
        1, len(study.shifts), figsize=(6 * len(study.shifts), 5), squeeze=False, sharey=True
    )
    for axis, shift in zip(axes[0], study.shifts, strict=True):
        best = yardstick(study, results, shift)
        if best is None or best.gain <= 0:
            axis.set(title=f"{shift}: {study.yardstick} gained nothing that is known")
            continue
        lines: dict[str, list[tuple[float, float]]] = {}
        for label in labels:
            for one in told(study, results, shift, label):
                point = (max(one.moved, LEAST_KL), 100 * one.gain / best.gain)
                lines.setdefault(one.arm, []).append(point)
        for arm, points in lines.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=arm)
        axis.set(
            title=shift, xlabel="KL(base || model) on text that the base wrote, nats per token"
        )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_ylabel(f"gain, % of {study.yardstick} as trained")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
