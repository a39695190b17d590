"""Several processes of one run on one terminal: one speaks."""

import logging
import os
import warnings
from pathlib import Path

from controlllm.common.errors import ConfigError
from controlllm.common.text.progress import show_progress

__all__ = ["SAVED", "be_silent", "note_saved", "record", "speaks"]

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
