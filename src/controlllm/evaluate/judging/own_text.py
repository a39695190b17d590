"""What own text says of a run: how far it moved from its base, with the bound, in a table."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from controlllm.evaluate.forgetting.alphas import told_setting
from controlllm.evaluate.forgetting.own import is_own_text, rounded_up, variation_bound
from controlllm.evaluate.judging.html import Child, tag
from controlllm.evaluate.judging.runs import Run
from controlllm.evaluate.judging.tables import table

__all__ = ["own_text_table"]

_KL = "/kl"
_HEADS = ("own text", "measured", "KL", "at most (95 %)", "total variation", "sequences", "tokens")


class _Row(NamedTuple):
    name: str
    when: str
    kl: float
    upper: float | None
    sequences: int | None = None
    tokens: int | None = None


def own_text_table(run: Run) -> Child:
    """KL per token of each set that a stage wrote itself, and its bound; None without such sets.

    As it was at the end of training, and, on sequences that chose nothing, where `calibrate` has
    set the dial.
    """
    rows = [*_trained(run), *_calibrated(run)]
    if not rows:
        return None
    body = tag("tbody", [_cells(row) for row in rows])
    return table(_HEADS, body, numeric=range(2, len(_HEADS)))


def _trained(run: Run) -> Iterator[_Row]:
    for last in reversed(run.history):
        sets = [key.removeprefix("retain/").removesuffix(_KL) for key in last if key.endswith(_KL)]
        if own := [name for name in sets if is_own_text(name)]:
            for name in own:
                when, key = f"in training, step {last['step']:g}", f"retain/{name}/kl"
                yield _Row(name, when, last[key], last.get(f"{key}_upper"))
            return


def _calibrated(run: Run) -> Iterator[_Row]:
    curve = run.calibration or {}
    for name, one in curve.get("certificates", {}).items():
        when = f"calibrated, {curve['dial']} {told_setting(curve['chosen'])}"
        yield _Row(name, when, one["kl"], one["upper"], one["sequences"], one["tokens"])


def _cells(row: _Row) -> Child:
    bound = math.inf if row.upper is None or math.isnan(row.upper) else max(row.upper, 0.0)
    kl = "–" if math.isnan(row.kl) else f"{row.kl:.4f}"
    numbers = [kl, *map(_most, (bound, variation_bound(bound)))]
    counts = ["–" if count is None else f"{count:,}" for count in (row.sequences, row.tokens)]
    cells = [tag("td", number, class_="n") for number in (*numbers, *counts)]
    return tag("tr", tag("th", row.name, scope="row", class_="name"), tag("td", row.when), cells)


def _most(bound: float) -> str:
    return "no bound" if math.isinf(bound) else f"≤ {rounded_up(bound)}"
