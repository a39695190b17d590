"""Measurements of held-out sets as a line for people."""

import math
from collections.abc import Mapping

from controlllm.common.text.tables import format_number, format_table
from controlllm.expansion.files.records import BASE
from controlllm.train.observe.retention import Measurement

__all__ = ["describe_sets", "stage_table"]


def describe_sets(metrics: Mapping[str, float]) -> str:
    """What was measured, set by set; other names with their values.

    >>> describe_sets({"learn/x/loss": 2.1, "learn/x/gain": 0.3})
    'learn/x 2.100 (gain +0.300)'
    >>> describe_sets({"generation/x/f1": 0.3, "generation/x/base_f1": 0.2, "generation/x/rows": 9})
    'generation/x (9 rows): f1 0.300 (base 0.200)'
    >>> describe_sets({"mine/accuracy": 0.25, "mine/rows": 1200})
    'mine/accuracy 0.25  mine/rows 1200'
    """
    parts = []
    for name, value in metrics.items():
        kind, _, rest = name.partition("/")
        group, _, last = name.rpartition("/")
        if kind in ("generation", "benchmarks") and last == "rows":
            parts.append(_describe_texts(metrics, group))
        elif kind in ("learn", "retain") and rest.endswith("/loss"):
            if kind == "learn":
                note = f"gain {metrics[f'{group}/gain']:+.3f}"
            else:
                forgetting, kl = metrics[f"{group}/forgetting"], metrics[f"{group}/kl"]
                note = f"forgetting {forgetting:+.3f}, kl {kl:.3f}"
                if (upper := metrics.get(f"{group}/kl_upper")) is not None:
                    note += f" <= {_not_below(upper)}"
            parts.append(f"{group} {value:.3f} ({note})")
        elif kind not in ("generation", "benchmarks", "learn", "retain"):
            parts.append(f"{name} {value:.6g}")
    return "  ".join(parts)


def _not_below(bound: float) -> str:
    """An upper bound in three decimals, rounded up: less would not be promised.

    >>> _not_below(0.02738), _not_below(3e-8), _not_below(float("inf"))
    ('0.028', '0.000', 'inf')
    """
    if not math.isfinite(bound):
        return str(bound)
    return f"{math.ceil(1e3 * bound - 1e-3) / 1e3:.3f}"  # Less than 1e-6 is the base's rounding.


def stage_table(measured: Measurement) -> str:
    """Each set beside the base and every stage before, and how much of it is forgotten."""
    stages = next(iter(measured.losses_at.values()), {})
    rows = []
    for kind, reports in (("learn", measured.learn), ("retain", measured.retain)):
        for name, report in reports.items():
            losses = measured.losses_at[f"{kind}/{name}"]
            owner = measured.owners.get(name, BASE) if kind == "retain" else "this run"
            lost = format_number(report.forgetting, signed=True) if kind == "retain" else ""
            rows.append([name, owner, *losses.values(), report.loss, lost])
    return format_table(["set", "of", *stages, "now", "forgotten"], rows)


def _describe_texts(metrics: Mapping[str, float], group: str) -> str:
    """What was written for one set, each number beside its base's."""
    pairs = [
        (name, value, metrics[base])
        for key, value in metrics.items()
        if (name := key.removeprefix(f"{group}/")) != key
        and (base := f"{group}/base_{name}") in metrics
    ]
    told = [f"{name} {value:.3f} (base {base:.3f})" for name, value, base in pairs]
    return f"{group} ({metrics[f'{group}/rows']:.0f} rows): {', '.join(told)}"
