"""A thread that tells which process hangs, and where, instead of waiting for hours.

Where nothing has gone on for long, each process writes where it is, and the stacks of its threads:

    output_dir/watchdog/
      rank-0.txt     stacks and place of rank 0        (also on its stderr)
      rank-0.json    the place, for the others
      report.txt     who waits for whom                (also on the stderr of the first rank)

It only reports: what a hang comes to, `parallel.timeout` decides.
"""

import faulthandler
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from controlllm.common.storage.files import write_text
from controlllm.train.observe.debugging.hangs import Report, collective_of, verdict
from controlllm.train.observe.timing import PhaseClock, Standing

__all__ = ["FOLDER", "Watchdog"]

FOLDER = "watchdog"
_LOOKS = 10
_GRACE = 10.0


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
        while not self._closed.wait(self._seconds / _LOOKS):
            standing = self._clock.standing
            if told is not None and told.since != standing.since:
                self._take_back(told)
                told = None
            lasted = time.monotonic() - standing.since
            if told is None and lasted > self._seconds:
                told = standing
                self._report(standing, lasted)
        if told is not None:  # What closes this thread has come as far as that.
            self._take_back(told)

    def _take_back(self, told: Standing) -> None:
        self._tell(
            f"rank {self._rank} goes on after {self._clock.standing.since - told.since:.0f} s"
        )
        self._own.unlink(missing_ok=True)

    def _report(self, standing: Standing, lasted: float) -> None:
        step, waits_in = self._step() + 1, collective_of(self._watched)
        own = Report(self._rank, step, standing.phase, standing.count, lasted, waits_in)
        self._folder.mkdir(parents=True, exist_ok=True)
        stacks = self._folder / f"rank-{self._rank}.txt"
        with stacks.open("w", encoding="utf-8") as file:
            file.write(f"{own.describe()}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        write_text(self._own, json.dumps(asdict(own)))
        self._tell(stacks.read_text(encoding="utf-8"))
        self._judge(standing)

    def _judge(self, standing: Standing) -> None:
        """Wait for the others' reports; the first rank that gave one says who hangs."""
        reports = self._reports()
        deadline = time.monotonic() + min(self._seconds, _GRACE)
        while len(reports) < self._world_size and time.monotonic() < deadline:
            if self._closed.wait(0.05) or self._clock.standing.since != standing.since:
                return
            reports = self._reports()
        if reports and self._rank == min(reports):
            text = verdict(reports, self._world_size)
            places = "\n".join(reports[rank].describe() for rank in sorted(reports))
            write_text(self._folder / "report.txt", f"{text}\n\n{places}\n")
            self._tell(f"{text} Stacks of all ranks: {self._folder}")

    def _reports(self) -> dict[int, Report]:
        found = {}
        for path in self._folder.glob("rank-*.json"):
            try:
                report = Report(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError):  # taken back just now
                continue
            found[report.rank] = report
        return {rank: report for rank, report in found.items() if rank < self._world_size}

    def _tell(self, text: str) -> None:
        print(f"watchdog: {text}", file=sys.stderr, flush=True)
