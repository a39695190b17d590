"""What was hoped for, beside what was measured; only numbers of a GPU are judged."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["judged"]

Rows = Sequence[Mapping[str, Any]]

LEAST_MFU, ABOVE_SHARE, OFF_PLAN = 0.45, 0.03, 0.10
SIZE_OF_MFU = "1B"


def judged(results: Mapping[str, Rows], dry: bool) -> list[dict[str, Any]]:
    """One row for each goal: what, the number, what was wished, and a word.

    Args:
        results: rows of each part by its name.
        dry: whether a CPU was measured, whose numbers say nothing.

    >>> row = {"way": "native", "size": "1B", "mfu": 0.5, "peak_gib": 11.5, "plan_gib": 10.0}
    >>> [(one["goal"], one["verdict"]) for one in judged({"step": [row]}, dry=False)][:2]
    [('MFU of native at 1B', 'pass'), ('memory of native, off the plan by', 'FAIL')]
    """
    found = [*_steps(results.get("step", ())), *_tests(results.get("tests", ()))]
    found += _resuming(results.get("resume", ()))
    for one in found:
        one["verdict"] = "not judged" if dry or one["verdict"] is None else one["verdict"]
        if isinstance(one["verdict"], bool):
            one["verdict"] = "pass" if one["verdict"] else "FAIL"
    return found


def _goal(goal: str, number: float, wished: str, verdict: bool | None) -> dict[str, Any]:
    return {"goal": goal, "measured": number, "wished": wished, "verdict": verdict}


def _steps(rows: Rows) -> Iterator[dict[str, Any]]:
    ways = {row["way"]: row for row in rows if "mfu" in row}
    for way in ("full", "native"):
        if way in ways and ways[way]["size"] == SIZE_OF_MFU:
            mfu = ways[way]["mfu"]
            wished = f">= {LEAST_MFU:.0%}"
            yield _goal(f"MFU of {way} at {SIZE_OF_MFU}", mfu, wished, mfu >= LEAST_MFU)
    if "full" in ways and "native" in ways:
        seconds, flops = (
            ways["native"][name] / ways["full"][name] for name in ("step_seconds", "planned_tflop")
        )
        over, wished = seconds / flops - 1, f"<= {ABOVE_SHARE:.0%}"
        name = "expanded step, of full tuning's, over its share of FLOPs by"
        yield _goal(name, over, wished, over <= ABOVE_SHARE)
    for way, row in ways.items():
        off, wished = row["peak_gib"] / row["plan_gib"] - 1, f"within {OFF_PLAN:.0%}"
        yield _goal(f"memory of {way}, off the plan by", off, wished, abs(off) <= OFF_PLAN)


def _tests(rows: Rows) -> Iterator[dict[str, Any]]:
    if rows:
        failed = sum(row["outcome"] == "failed" for row in rows)
        passed = sum(row["outcome"] == "passed" for row in rows)
        verdict = None if not passed and not failed else failed == 0
        yield _goal("marked tests that failed", failed, "0", verdict)


def _resuming(rows: Rows) -> Iterator[dict[str, Any]]:
    """A run that goes on can be judged only where a device repeats itself."""
    if len(rows) == 2:
        again, resumed = (row["different"] for row in rows)
        verdict = None if again else resumed == 0
        yield _goal("tensors that differ after resuming", resumed, "0", verdict)
