"""Ctrl-C on the command line: one line and exit code 130, from the first second on.

The packages below this one take seconds to import, and are not made to be interrupted there. So the
command, and nothing else that imports this package, listens before it imports them.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

__all__ = ["INTERRUPTED", "end_at_once", "is_command", "raise_once", "was_interrupted"]

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and the signal's number, as shells have it."""

_seen: list[int] = []


def end_at_once() -> None:
    """From now on Ctrl-C ends the command with a line; for as long as nothing is under way."""
    _listen(_end)


def raise_once() -> None:
    """From now on Ctrl-C is a `KeyboardInterrupt`, which lets blocks clean up; the second ends."""
    _listen(_raise)


def was_interrupted() -> bool:
    """Whether Ctrl-C was raised, whatever some library made of it."""
    return bool(_seen)


def _listen(handler: "signal._HANDLER") -> None:
    if is_command() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


def is_command() -> bool:
    """Whether this process was started as `controlllm` or as `python -m controlllm`, or `.cli`."""
    words = sys.orig_argv
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    return module in (["controlllm"], ["controlllm.cli"]) or Path(sys.argv[0]).stem == "controlllm"


def _raise(number: int, frame: FrameType | None) -> None:
    if _seen:
        _end(number, frame)
    _seen.append(os.getpid())
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    # Of several processes on one terminal one speaks; children that were forked are not asked.
    if os.environ.get("LOCAL_RANK", "0") == "0" and (not _seen or _seen[0] == os.getpid()):
        os.write(2, b"\nInterrupted.\n")
    os._exit(INTERRUPTED)
