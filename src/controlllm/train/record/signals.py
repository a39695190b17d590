"""A request to stop, by a signal: the step is finished and saved, then the run ends.

Schedulers send one before they take a machine away: SIGTERM (Kubernetes, Slurm's preemption),
SIGUSR1 (Slurm's `--signal=USR1@120`), and a keyboard sends SIGINT (Ctrl-C). While a run is being
set up there is nothing to save, so it ends at once; the second signal always ends it at once.
"""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

__all__ = ["PREEMPTED", "StopSignals", "ignore_signals", "stop_without"]

PREEMPTED = 75
"""The exit code of a run that was asked to stop: EX_TEMPFAIL, "try the same again later"."""

_NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")
_STOPPING = b"\nStopping after this step, and saving; a second signal ends the run at once.\n"


class StopSignals:
    """Listens for signals within its block, if that runs in the main thread."""

    def __init__(self) -> None:
        self.received = False
        self._waits = self._tells = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in _numbers():
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None: it was set by other means than Python's, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def begin(self, tell: bool) -> None:
        """Let a signal wait for the end of the current step from now on.

        One of several processes is to tell on stderr that it was asked to.
        """
        self._waits, self._tells = True, tell

    def leave(self) -> None:
        """Ignore signals once all is saved, so that none spoils the exit code."""
        if self.received:
            ignore_signals()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # A child that was forked within the block.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if not self._waits:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(PREEMPTED)
        self.received = True
        # The next one shall end the process even where no Python runs, deep in a collective.
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        if self._tells:
            os.write(2, _STOPPING)  # print may be what was interrupted.


def ignore_signals() -> None:
    """Ignore signals from now on: a launcher that sees one process end may end the others.

    For the main thread.
    """
    for number in _numbers():
        signal.signal(number, signal.SIG_IGN)


def stop_without(parent: int) -> None:
    """Ask this process to stop once its parent is gone: a launcher that is killed tells nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stop_without", daemon=True).start()


def _numbers() -> list[signal.Signals]:
    return [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
