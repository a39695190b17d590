"""lm-evaluation-harness without what it leaves behind: random state, bars, hundreds of lines."""

import logging
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["quiet_harness"]

log = logging.getLogger(__name__)

_CUT = re.compile(r"(?:Left truncation|Truncating \d+ tokens)")


class _Counter(logging.Handler):
    """Counts inputs that were cut, keeps errors, drops the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            log.error("lm-eval: %s", record.getMessage())
        elif _CUT.search(record.getMessage()):
            self.cut += 1


@contextmanager
def quiet_harness(asked: str = "", told: set[str] | None = None) -> Iterator[None]:
    """Inside, the harness shows nothing but errors; afterwards random states are as before.

    Inputs that lost their beginning, as they are longer than the model reads, are told in one line,
    with the name of what is `asked`, which is then added to what was `told`: once is enough.
    """
    import datasets
    from lm_eval.api import task

    harness, counter = logging.getLogger("lm_eval"), _Counter()
    before = harness.propagate
    harness.addHandler(counter)
    tokenizers = logging.getLogger("transformers.tokenization_utils_base")
    tokenizers.addFilter(_is_no_length)
    harness.propagate = False
    bars: Any = vars(task)
    shown = bars["tqdm"]
    bars["tqdm"] = _no_bar  # It asks nobody before it draws one for each task.
    drawn = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        bars["tqdm"] = shown
        if drawn:
            datasets.enable_progress_bars()
        harness.propagate = before
        harness.removeHandler(counter)
        tokenizers.removeFilter(_is_no_length)
        if counter.cut and asked not in (told or ()):
            if told is not None:
                told.add(asked)
            log.warning(
                "%s: %d inputs are longer than the model reads, and lost their beginning (fewer "
                "examples before the question, --num_fewshot or `shots`, may help).",
                asked,
                counter.cut,
            )


def _is_no_length(record: logging.LogRecord) -> bool:
    """Not what tokenizers say of long texts: inputs that are cut are counted, and told here."""
    return "Token indices sequence length is longer" not in record.getMessage()


def _no_bar(values: Any, **_: Any) -> Any:
    return values
