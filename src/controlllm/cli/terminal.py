"""What the terminal shows: one-line warnings, and progress with the time left."""

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, overload

__all__ = ["Tracked", "plain_warnings", "quiet_progress_bars"]

T = TypeVar("T")
_PLAIN_LINE_SECONDS = 10.0


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as one line each on stderr, without the source line."""

    def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
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


def _show(text: str, on_terminal: bool) -> None:
    if on_terminal:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)
