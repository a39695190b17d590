"""What the terminal shows: one-line warnings, and progress with the time left."""

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, overload

from controlllm.common.torchao import quiet_torchao

__all__ = ["Counter", "Tracked", "plain_warnings", "quiet_progress_bars"]

T = TypeVar("T")
_PLAIN_LINE_SECONDS, _REWRITE_SECONDS = 10.0, 0.2


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as one line each on stderr, without the source line.

    transformers imports torchao where it is installed, whose words on that concern nobody here.
    """

    def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings(), quiet_torchao():
        warnings.showwarning = show  # restored by catch_warnings
        yield


def quiet_progress_bars() -> None:
    """Without a terminal, let transformers print no progress bars."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


class Tracked(Sequence[T]):
    """A sequence that shows how far each walk through it has come.

    On a terminal one line is rewritten; in a pipe a line is printed every ten seconds.

    Args:
        items: what is walked through.
        label: what is shown before the numbers.
    """

    def __init__(self, items: Sequence[T], label: str) -> None:
        self.items = items
        self.label = label

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self.items[index]

    def __iter__(self) -> Iterator[T]:
        started = shown = time.monotonic()
        on_terminal = sys.stderr.isatty()
        for done, item in enumerate(self.items, start=1):
            yield item
            now = time.monotonic()
            if on_terminal or now - shown > _PLAIN_LINE_SECONDS:
                shown = now
                left = (now - started) / done * (len(self.items) - done)
                _show(f"{self.label}: {done}/{len(self.items)}, {left:.0f} s left", on_terminal)
        if on_terminal:
            _show("", on_terminal)


class Counter:
    """Shows how many of some things are done, and the time left where their number is known.

    On a terminal one line is rewritten; in a pipe a line is printed every ten seconds.

    Args:
        label: what is shown before the numbers.
        things: what is counted ("rows").
        total: how many there are, if that is known.
    """

    def __init__(self, label: str, things: str, total: int | None = None) -> None:
        self.label = label
        self.things = things
        self.total = total
        self._on_terminal = sys.stderr.isatty()
        self._pause = _REWRITE_SECONDS if self._on_terminal else _PLAIN_LINE_SECONDS
        self._started = self._shown = time.monotonic()

    def show(self, done: int) -> None:
        """Say how many are done, unless that was said a moment ago."""
        now = time.monotonic()
        if now - self._shown < self._pause:
            return
        self._shown = now
        text = f"{self.label}: {done:,} {self.things}"
        if self.total:
            left = (now - self._started) / max(done, 1) * max(self.total - done, 0)
            text = f"{self.label}: {done:,} of {self.total:,} {self.things}, {left:.0f} s left"
        _show(text, self._on_terminal)

    def close(self) -> None:
        """Take the line off the terminal."""
        if self._on_terminal:
            _show("", self._on_terminal)


def _show(text: str, on_terminal: bool) -> None:
    if on_terminal:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)
