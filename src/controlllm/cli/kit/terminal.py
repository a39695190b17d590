"""What the terminal shows: warnings and log lines, one line each, with nothing that steers it."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from controlllm.common.packages.torchao import quiet_torchao
from controlllm.common.text.readable import readable

__all__ = ["plain_warnings", "quiet_progress_bars", "tell_log"]


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as one line each on stderr, without the source line.

    transformers imports torchao where it is installed, whose words on that concern nobody here.
    """

    def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
        print(f"warning: {readable(str(message))}", file=sys.stderr)

    with warnings.catch_warnings(), quiet_torchao():
        warnings.showwarning = show  # restored by catch_warnings
        yield


def quiet_progress_bars() -> None:
    """Without a terminal, let transformers print no progress bars."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


class _Log(logging.Handler):
    """Prints messages as they are, but for what would steer the terminal; above a bar of rich."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one, on what standard error is by now."""
        print(readable(self.format(record)), file=sys.stderr, flush=True)


def tell_log() -> None:
    """Print what this library logs from now on, from its remarks on."""
    logging.basicConfig(handlers=[_Log()], format="%(message)s")
    logging.getLogger("controlllm").setLevel(logging.INFO)
