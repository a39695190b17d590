"""What the terminal shows: warnings and log lines, one line each, said by one of the processes."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.quiet import quiet_imports
from controlllm.common.text.progress import show_progress
from controlllm.common.text.readable import readable

__all__ = [
    "SAVED",
    "be_silent",
    "note_saved",
    "plain_warnings",
    "quiet_progress_bars",
    "record",
    "speaks",
    "tell_log",
]


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as one line each on stderr, without the source line."""

    def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
        print(f"warning: {readable(str(message))}", file=sys.stderr)

    with warnings.catch_warnings(), quiet_imports():
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
        """Print one record, on the present standard error."""
        print(readable(self.format(record)), file=sys.stderr, flush=True)


def tell_log() -> None:
    """Print what this library logs from now on, from its remarks on."""
    logging.basicConfig(handlers=[_Log()], format="%(message)s")
    logging.getLogger("controlllm").setLevel(logging.INFO)


SAVED = "saved"
"""Name of the file by which a run that was asked to stop tells its launcher that it has saved."""


def speaks() -> bool:
    """Whether this process shows errors that others may have, too: one on each machine does.

    For errors from before the processes have found each other; later they agree on who speaks.
    """
    local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return local_rank == "0"


def is_first() -> bool:
    """Whether this process tells what the run does."""
    from controlllm.train.parallel.processes import place_in

    try:
        place = place_in()
    except ConfigError:  # Which is raised again where the run begins.
        return True
    return place is None or place.rank == 0


def be_silent() -> None:
    """Let this process show nothing but its own error; what it would say, the first one says."""
    from transformers.utils import logging as transformers_logging

    show_progress(False)
    warnings.simplefilter("ignore")
    logging.getLogger("controlllm").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def note_saved() -> None:
    """Tell the launcher, if one started this process, that the run has saved before it ends."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(file).with_name(SAVED).touch()


def record(error: Exception) -> None:
    """Leave an error where torchrun looks for it, if torchrun started this process."""
    if not os.environ.get("TORCHELASTIC_ERROR_FILE"):
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
