"""Where processes are when nothing goes on, and which of them the others wait for. Pure functions.

All processes of a run pass through the same phases, so the one that has begun the fewest is behind.
Of several that are equally far, those that wait in a collective wait for those that do not.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from traceback import walk_stack

__all__ = ["Report", "collective_of", "verdict"]

_COLLECTIVES = ("distributed_c10d.py", "_functional_collectives.py")


@dataclass(frozen=True)
class Report:
    """What one process is doing.

    Attributes:
        rank: which one.
        step: the optimizer step it works on.
        phase: the phase of it.
        count: how many phases have begun or ended.
        seconds: how long nothing has gone on.
        collective: what it waits in for the others; None if it does not.
    """

    rank: int
    step: int
    phase: str | None
    count: int
    seconds: float
    collective: str | None

    def describe(self) -> str:
        """The report as one line."""
        where = f"step {self.step}, {self.phase or 'between phases'}"
        what = f", waiting for others in {self.collective}" if self.collective else ""
        return f"rank {self.rank} has not gone on for {self.seconds:.0f} s: {where}{what}"


def verdict(reports: Mapping[int, Report], world_size: int) -> str:
    """Say which rank hangs, as far as the reports tell.

    Args:
        reports: of each process that gave one, by rank.
        world_size: processes of the run.
    """
    silent = sorted(set(range(world_size)) - reports.keys())
    if silent:
        return (
            f"{_ranks(silent)} gave no report: dead, stopped, blocked outside of Python, or on a "
            "machine that does not share the run's folder. Look there first."
        )
    if world_size == 1:
        return f"{reports[0].describe()}."
    behind = min(report.count for report in reports.values())
    suspects = [rank for rank, report in reports.items() if report.count == behind]
    free = [rank for rank in suspects if reports[rank].collective is None]
    suspects = sorted(free or suspects)
    if len(suspects) == world_size:
        return "All ranks are in the same place; compare their stacks."
    there = reports[suspects[0]]
    waiting = sorted(reports.keys() - set(suspects))
    names = sorted(
        {r.collective for rank, r in reports.items() if rank in waiting and r.collective}
    )
    return (
        f"{_ranks(suspects)} {_plural('hang', suspects)} in step {there.step}, "
        f"{there.phase or 'between phases'}; {_ranks(waiting)} {_plural('wait', waiting)} for it"
        f"{' in ' + ', '.join(names) if names else ''}."
    )


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _plural(verb: str, ranks: list[int]) -> str:
    return f"{verb}s" if len(ranks) == 1 else verb


def collective_of(thread: int) -> str | None:
    """The collective that a thread waits in.

    Args:
        thread: the thread that trains; where it waits for autograd's own threads, those of FSDP are
            looked at, too.
    """
    stacks = {
        number: [(PurePath(f.f_code.co_filename), f.f_code.co_name) for f, _ in walk_stack(top)]
        for number, top in sys._current_frames().items()
    }
    own = stacks.pop(thread, [])
    by_fsdp = [calls for calls in stacks.values() if any("fsdp" in file.parts for file, _ in calls)]
    for calls in (own, *by_fsdp):
        for file, name in reversed(calls):  # the outermost first
            if file.name in _COLLECTIVES and not name.startswith("_"):
                return name
    return None
