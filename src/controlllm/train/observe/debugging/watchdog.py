"""A thread that tells which process hangs, and where, instead of waiting for hours.

Where nothing has gone on for long, each process writes where it is, and the stacks of its threads:

    output_dir/watchdog/
      rank-0.txt     stacks and place of rank 0        (also on its stderr)
      rank-0.json    the place, for the others
      report.txt     who waits for whom                (also on the stderr of the first rank)

It only reports: what a hang comes to, `parallel.timeout` decides. All processes of a run pass
through the same phases, so the one that has begun the fewest is behind. Of several that are equally
far, those that wait in a collective wait for those that do not.
"""

import faulthandler
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from traceback import walk_stack

from controlllm.common.storage.files import write_text
from controlllm.train.observe.timing import PhaseClock, Standing

__all__ = ["FOLDER", "Report", "Watchdog", "collective_of", "verdict"]

FOLDER = "watchdog"
_LOOKS, _GRACE = 10, 10.0
_COLLECTIVES = ("distributed_c10d.py", "_functional_collectives.py")


@dataclass(frozen=True)
class Report:
    """What one process is doing."""

    rank: int
    step: int  # the optimizer step it works on
    phase: str | None
    count: int  # how many phases have begun or ended
    seconds: float  # how long nothing has gone on
    collective: str | None  # what it waits in for the others

    def where(self) -> str:
        """Its step and phase."""
        return f"step {self.step}, {self.phase or 'between phases'}"

    def describe(self) -> str:
        """The report as one line."""
        what = f", waiting for others in {self.collective}" if self.collective else ""
        return f"rank {self.rank} has not gone on for {self.seconds:.0f} s: {self.where()}{what}"


def verdict(reports: Mapping[int, Report], world_size: int) -> str:
    """Say which rank hangs, as far as the reports by rank tell; some of them may be missing."""
    silent = set(range(world_size)) - reports.keys()
    if silent:
        return (
            f"{_ranks(silent)} gave no report: dead, stopped, blocked outside of Python, or on a "
            "machine that does not share the run's folder. Look there first."
        )
    if world_size == 1:
        return f"{reports[0].describe()}."
    behind = min(report.count for report in reports.values())
    last = {rank for rank, report in reports.items() if report.count == behind}
    suspects = {rank for rank in last if reports[rank].collective is None} or last
    if len(suspects) == world_size:
        return "All ranks are in the same place; compare their stacks."
    waiting = reports.keys() - suspects
    names = sorted({name for rank in waiting if (name := reports[rank].collective)})
    hang, wait = ("s" if len(ranks) == 1 else "" for ranks in (suspects, waiting))
    return (
        f"{_ranks(suspects)} hang{hang} in {reports[min(suspects)].where()}; {_ranks(waiting)} "
        f"wait{wait} for it{' in ' if names else ''}{', '.join(names)}."
    )


def _ranks(ranks: set[int]) -> str:
    shown = ", ".join(map(str, sorted(ranks)[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def collective_of(thread: int) -> str | None:
    """The collective that a thread waits in; also one that FSDP waits in, in autograd's threads."""
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


class Watchdog:
    """Watches the thread that made it, and reports when a phase takes too long.

    Args:
        clock: tells which phase it is in.
        step: gives the optimizer steps done.
        output_dir: the run folder, which all processes see.
        place: rank of this process, and processes of the run.
        seconds: how long a phase may take.
    """

    def __init__(
        self,
        clock: PhaseClock,
        step: Callable[[], int],
        output_dir: Path,
        place: tuple[int, int],
        seconds: float,
    ) -> None:
        self._clock, self._step, self._seconds = clock, step, seconds
        self._rank, self._world_size = place
        self._folder = output_dir / FOLDER
        self._watched = threading.get_ident()
        self._closed = threading.Event()
        self._own = self._folder / f"rank-{self._rank}.json"
        self._own.unlink(missing_ok=True)  # of an earlier hang
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        told: Standing | None = None
        closed = False
        while not closed:
            closed = self._closed.wait(self._seconds / _LOOKS)
            now = self._clock.standing
            # What closes this thread has come as far as that.
            if told is not None and (closed or told.since != now.since):
                self._tell(f"rank {self._rank} goes on after {now.since - told.since:.0f} s")
                self._own.unlink(missing_ok=True)
                told = None
            lasted = time.monotonic() - now.since
            if told is None and not closed and lasted > self._seconds:
                told = now
                self._report(now, lasted)

    def _report(self, now: Standing, lasted: float) -> None:
        step, waits_in = self._step() + 1, collective_of(self._watched)
        own = Report(self._rank, step, now.phase, now.count, lasted, waits_in)
        self._folder.mkdir(parents=True, exist_ok=True)
        stacks = self._folder / f"rank-{self._rank}.txt"
        with stacks.open("w", encoding="utf-8") as file:
            file.write(f"{own.describe()}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        write_text(self._own, json.dumps(asdict(own)))
        self._tell(stacks.read_text(encoding="utf-8"))
        # The first rank that gave a report says who hangs, once the others have given theirs.
        deadline = time.monotonic() + min(self._seconds, _GRACE)
        while len(reports := self._reports()) < self._world_size and time.monotonic() < deadline:
            if self._closed.wait(0.05) or self._clock.standing.since != now.since:
                return
        if reports and self._rank == min(reports):
            text = verdict(reports, self._world_size)
            places = "\n".join(reports[rank].describe() for rank in sorted(reports))
            write_text(self._folder / "report.txt", f"{text}\n\n{places}\n")
            self._tell(f"{text} Stacks of all ranks: {self._folder}")

    def _reports(self) -> dict[int, Report]:
        found = {}
        for rank in range(self._world_size):
            try:
                text = (self._folder / f"rank-{rank}.json").read_text(encoding="utf-8")
                found[rank] = Report(**json.loads(text))
            except (OSError, ValueError):  # not there, or taken back just now
                continue
        return found

    def _tell(self, text: str) -> None:
        print(f"watchdog: {text}", file=sys.stderr, flush=True)
