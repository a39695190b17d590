"""How many threads to compute with: on shared cores, more are often many times slower."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

__all__ = ["quickest_threads"]

STEPS = 3


@contextmanager
def quickest_threads(model: PreTrainedModel) -> Iterator[int]:
    """Compute with one thread or with torch's own number of them, whichever is quicker now.

    Threads of one operation wait for each other: where another process holds one of the cores,
    all wait for the slowest. What is right changes with the machine's load, so steps are timed. The
    number of threads is yielded.
    """
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = _seconds(model, float("inf"))
        torch.set_num_threads(usual)
        if usual > 1 and _seconds(model, alone) >= alone:
            torch.set_num_threads(1)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(usual)


def _seconds(model: PreTrainedModel, limit: float) -> float:
    """Time of a few forward and backward passes; it stops where the limit is passed."""
    ids_BT = torch.arange(8 * 256).view(8, 256) % model.config.vocab_size
    seconds = 0.0
    for step in range(STEPS + 1):
        started = time.monotonic()
        torch.autograd.grad(
            model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss,
            next(iter(model.parameters())),
        )
        seconds += (time.monotonic() - started) if step else 0.0  # The first one warms up.
        if seconds > limit:
            break
    return seconds
