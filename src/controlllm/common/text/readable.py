"""Text of strangers on a terminal: what would steer it is made visible, wherever it comes from.

Names of tensors, models and files, rows, what a model writes, and errors that quote them may hold
escape sequences. `readable` shows them as text; `guarded_output` lets nothing else through to
standard output and error. What moves the cursor on purpose (progress, colours) takes what is
`unguarded`.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

__all__ = ["guarded_output", "readable", "unguarded"]

_MOVES_OF_BARS = re.compile(r"[\r\n]|(\n|\x1b\[A)+")
"""What tqdm writes by itself between its bars: harmless, as no text comes with it."""


def _visible() -> dict[int, str]:
    """Characters that would steer a terminal or turn the direction of the text -> what to show."""
    hidden = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
    hidden |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
    turning = [0x061C, *range(0x200E, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
    turning += [*range(0xD800, 0xE000), *range(0xE0000, 0xE0080)]  # halves, and invisible tags
    return hidden | {code: f"\\u{code:04x}" for code in turning} | {0x7F: "\u2421"}


_VISIBLE = _visible()


def readable(text: str) -> str:
    """The text with control characters made visible; only line ends and tabs stay as they are."""
    return text.translate(_VISIBLE)


class _Guarded:
    """A stream whose text is made readable; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        if not _MOVES_OF_BARS.fullmatch(text):
            # A bar begins by going back to the start of its line.
            start = "\r" if text.startswith("\r") else ""
            self.unguarded.write(start + readable(text[len(start) :]))
        else:
            self.unguarded.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


@contextmanager
def guarded_output() -> Iterator[None]:
    """Inside, whatever is printed is `readable`, and nothing fails for want of a letter."""
    plain = sys.stdout, sys.stderr
    for stream in plain:
        if hasattr(stream, "reconfigure"):  # Old terminals cannot show every letter.
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (_Guarded(stream) for stream in plain)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = plain


def unguarded(stream: TextIO) -> TextIO:
    """The stream below, for what steers the terminal on purpose and shows no text of others."""
    return getattr(stream, "unguarded", stream)
