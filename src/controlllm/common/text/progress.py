"""How far long work is: one line that is rewritten on a terminal, sparse lines in a log.

    with progress("calibrate", "batches", total=130):
        ...
        tick()          # wherever the work is done: the innermost line moves on

Nothing is shown before `show_progress(True)`: what a library prints is its caller's business.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from controlllm.common.text.readable import readable, unguarded
from controlllm.common.text.secrets import hidden

__all__ = ["Progress", "progress", "show_progress", "stage", "tick"]

_REWRITE_SECONDS, _LOG_SECONDS = 0.2, 10.0

_shown = False
_running: "list[Progress]" = []


def show_progress(on: bool) -> None:
    """Whether this process shows how far it is; of several processes of a run one does."""
    global _shown
    _shown = on


class Progress:
    """How many of some things are done, and the time left where their number is known."""

    def __init__(self, label: str, things: str, total: float | None = None) -> None:
        self.label, self.things, self.total = readable(label), things, total
        self.done = 0.0
        self._on_terminal = _on_terminal()
        self._started = time.monotonic()
        self._told = self._started
        if self._on_terminal:
            self._say()

    def show(self, done: float) -> None:
        """Say how many are done, unless that was said a moment ago."""
        first, self.done = self.done == 0, done
        now = time.monotonic()
        # Rarer, the longer it takes, where each is a line of its own.
        rare = _LOG_SECONDS + (now - self._started) / 10
        pause = _REWRITE_SECONDS if self._on_terminal else rare
        if now - self._told >= pause or (first and (self._left(now) or 0) > _LOG_SECONDS):
            self._told = now
            self._say()

    def close(self) -> None:
        """Take the line off the terminal."""
        if self._on_terminal:
            _write("", True)

    def _left(self, now: float) -> float | None:
        if self.total is None or self.done < 1:  # Too little to tell by, where it shows as 0.
            return None
        return (now - self._started) / self.done * max(self.total - self.done, 0)

    def _say(self) -> None:
        text = f"{self.label}: {self.done:,.0f}"
        text += f" of {self.total:,.0f} {self.things}" if self.total else f" {self.things}"
        left = self._left(time.monotonic())
        _write(text if left is None else f"{text}, {_duration(left)} left", self._on_terminal)


@contextmanager
def progress(label: str, things: str, total: float | None = None) -> Iterator[Progress]:
    """Show how far the work inside is, by `tick` or by what is yielded."""
    line = Progress(label, things, total)
    _running.append(line)
    try:
        yield line
    finally:
        _running.remove(line)
        line.close()


def tick(count: float = 1) -> None:
    """So many more things are done, of those that the innermost `progress` counts."""
    if _running:
        _running[-1].show(_running[-1].done + count)


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Say what is done and cannot be counted: at once on a terminal, else if it takes long."""
    text, on_terminal = f"{readable(hidden(text))} ...", _on_terminal()
    timer = threading.Timer(_LOG_SECONDS, _write, [text, False])
    timer.daemon = True
    if on_terminal:
        _write(text, True)
    elif _shown:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if on_terminal:
            _write("", True)


def _write(text: str, on_terminal: bool) -> None:
    if not _shown:
        return
    if on_terminal:
        print(f"\r\x1b[K{text}", end="", file=unguarded(sys.stderr), flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def _on_terminal() -> bool:
    """Whether a line can be rewritten: not where rich holds a bar at the end of the screen."""
    return sys.stderr.isatty() and not hasattr(sys.stderr, "rich_proxied_file")


def _duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
