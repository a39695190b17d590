"""How long a run is: steps of a pass over the data, of the whole run, and those the data gives."""

import logging
import math
import warnings
from collections.abc import Callable

from controlllm.common.errors import ConfigError, DataError
from controlllm.data import Size, TrainLoader
from controlllm.train.config.run_config import RunConfig
from controlllm.train.step.schedules import learning_rate_factor

__all__ = [
    "count_steps",
    "sequences_rehearsed",
    "steps_per_epoch",
    "warn_of_short_data",
    "whole_steps",
]

log = logging.getLogger(__name__)

NEAR = 0.95
"""A run that has gone so far has had its schedule; sizes are estimates, too."""


def count_steps(run: RunConfig, data: Callable[[], TrainLoader]) -> int:
    """`max_steps`, or the steps in which the mix draws train `num_train_epochs` times.

    `data` opens the train sources; it is called for the latter only.
    """
    training = run.training
    if training.num_train_epochs is None:
        return training.max_steps
    loader = data()
    size = loader.size()
    if not size.exact:
        log.info("One epoch is about %s tokens, by a sample", f"{round(size.tokens):,}")
    return whole_steps(run, size, training.num_train_epochs, loader.ranks.world_size)


def whole_steps(run: RunConfig, size: Size, epochs: float = 1.0, world_size: int = 1) -> int:
    """The steps of so many epochs, the last of which may be cut short; at least one."""
    return max(math.ceil(epochs * steps_per_epoch(run, size, world_size)), 1)


def steps_per_epoch(run: RunConfig, size: Size, world_size: int = 1) -> float:
    """Steps in which the mix draws as much from the train sources as they hold.

    Packed slots, and batches by a budget of tokens, count as full, which they are but for some
    tokens; shares of replay and rehearsal are counted in rows for other padded batches. `size` is
    that of one epoch of all train sources.
    """
    training, data = run.training, run.data
    rows = training.per_device_train_batch_size
    if data.packing:
        batches = size.tokens / data.max_length / rows
    elif data.max_tokens_per_batch is not None:
        batches = size.tokens / data.max_tokens_per_batch
    else:
        batches = size.examples / rows
    rehearsed = run.rehearsal.share if run.rehearsal.enabled else 0.0
    share = 1 - data.replay_share - rehearsed
    return batches / share / (training.micro_batches(world_size) * world_size)


def sequences_rehearsed(run: RunConfig, steps: int, length: float, world_size: int = 1) -> float:
    """About how many sequences of so many tokens in the mean are rehearsed in so many steps.

    Slots and batches are counted as `steps_per_epoch` counts them.
    """
    training, data = run.training, run.data
    per_batch: float = training.per_device_train_batch_size
    if data.packing:
        per_batch *= data.max_length / length
    elif data.max_tokens_per_batch is not None:
        per_batch = data.max_tokens_per_batch / length
    batches = steps * training.micro_batches(world_size) * world_size
    return batches * per_batch * run.rehearsal.share


def warn_of_short_data(run: RunConfig, loader: TrainLoader, total_steps: int) -> None:
    """Warn where the data ends before the learning-rate schedule does.

    Sources with `epochs` leave the mix; once all have left it the run ends, however many steps
    it was planned for. Where the size of the data is not known, nothing is said.
    """
    try:
        size = loader.size_of_all_epochs()
    except (ConfigError, DataError):
        return  # A stream of unknown size; or a bad row, which the run itself is going to name.
    if size is None:
        return
    steps = whole_steps(run, size, world_size=loader.ranks.world_size)
    if steps >= NEAR * total_steps:
        return
    training = run.training
    left = learning_rate_factor(steps - 1, training, total_steps)
    wanted = f"training.max_steps={total_steps}"
    if training.num_train_epochs is not None:
        wanted = f"the {total_steps} steps of training.num_train_epochs={training.num_train_epochs}"
    warnings.warn(
        f"every source of data.train has `epochs`, which give about {steps} steps, but the "
        f"learning rate is scheduled for {wanted}: the run would end with its data, at "
        f"{left:.0%} of the peak rate. Set training.max_steps={steps} (and no num_train_epochs), "
        "or raise `epochs`, or leave them out.",
        stacklevel=3,
    )
