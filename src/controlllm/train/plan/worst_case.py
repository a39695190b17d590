"""The largest batch first: a run that needs too much memory fails in its first minute.

Before step 1 one forward and backward pass runs on made-up batches as large as this config allows,
beside as much memory as the optimizer will need. Gradients are thrown away, and nothing is changed:
with and without it a run gives the same weights, bit for bit.
"""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from controlllm.checkpoint import capture_rng, restore_rng
from controlllm.common.errors import TrainingError
from controlllm.data import (
    REHEARSAL,
    TRAIN,
    Batch,
    DataConfig,
    Example,
    Member,
    collate,
    padded_width,
)
from controlllm.train.setup.stages import Ready

__all__ = ["run_worst_case", "worst_shapes"]

log = logging.getLogger(__name__)

MOMENTS = 2
"""Tensors that AdamW keeps for each trained one."""


def run_worst_case(ready: Ready) -> None:
    """Run forward and backward of the largest batches; the run itself is not changed.

    Raises:
        TrainingError: a batch does not fit into memory; its shape, and what to lower.
    """
    with _untouched(ready.model), _optimizer_memory(ready):
        ready.model.train()
        for rows, width in worst_shapes(ready.run.data, ready.loader.batch_size):
            batch = _make_batch(ready, rows, width)
            counts = ready.loss.count([batch])
            try:
                with _telling(_advice(ready, rows, width)):
                    # Twice where gradients of an earlier micro-batch are there already.
                    for _ in range(min(ready.micro_batches, 2)):
                        with ready.autocast():
                            loss = ready.loss.micro_batch(ready.to_device(batch), counts)
                        loss.backward()
            finally:
                ready.optimizer.zero_grad(set_to_none=True)
            log.info("The largest batch fits into memory: %s", _describe(ready, rows, width))


def worst_shapes(config: DataConfig, batch_size: int) -> list[tuple[int, int]]:
    """(rows, tokens of each) of the batches that need most memory.

    With a budget of tokens there are three: the longest rows (attention costs most), the rows that
    fill the budget best, and as many short rows as fit.
    """
    budget, length = config.max_tokens_per_batch, config.max_length
    if config.packing or budget is None:
        return [(batch_size, length)]
    widths = sorted({padded_width(width, length) for width in range(2, length + 1)})
    fullest = max(widths, key=lambda width: (budget // width * width, width))
    chosen = sorted({widths[-1], fullest, widths[0]}, reverse=True)
    return [(budget // width, width) for width in chosen]


def _make_batch(ready: Ready, rows: int, width: int) -> Batch:
    """Rows (or slots) of one document each, every token a target, by the run's own collator."""
    config = ready.model.config.get_text_config(decoder=True)
    vocabulary = min(len(ready.tokenizer), config.vocab_size)
    ids = (np.arange(width) % vocabulary).astype(np.int32)
    labels = ids.copy()
    labels[0] = -100
    example = Example(ids, labels)
    rehearsed = 0
    if ready.loss.rehearsal_weight is not None:  # Then the base computes these rows, too.
        rehearsed = math.ceil(rows * ready.run.rehearsal.share)
    groups: list[list[Member]] = [
        [(example, REHEARSAL if row < rehearsed else TRAIN)] for row in range(rows)
    ]
    return collate(groups, ready.run.data, pad_id=0)


@contextmanager
def _optimizer_memory(ready: Ready) -> Iterator[None]:
    """Hold what the optimizer's state will take, as far as it is not there yet."""
    groups = ready.optimizer.param_groups
    missing = [p for group in groups for p in group["params"] if not ready.optimizer.state.get(p)]
    with _telling(
        f"the optimizer's state of {sum(p.numel() for p in missing):,} trained parameters does not "
        "fit into memory; train fewer (expansion.num_blocks) or take a smaller base."
    ):
        make = getattr(ready.optimizer, "moment_like", torch.empty_like)  # in few bits, or not
        held = [make(p) for p in missing for _ in range(MOMENTS)]
    try:
        yield
    finally:
        held.clear()


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put back what a forward pass may change: random states, buffers, modes, plain attributes."""
    random_states, before = capture_rng(), []
    kinds = (bool, int, float, str, type(None))  # such as the length that rotary embeddings saw
    for module in model.modules():
        plain = {name: value for name, value in vars(module).items() if isinstance(value, kinds)}
        buffers = [(*one, one[1].detach().clone()) for one in module.named_buffers(recurse=False)]
        before.append((module, plain, buffers))
    try:
        yield
    finally:
        for module, plain, buffers in before:
            vars(module).update(plain)
            for name, buffer, values in buffers:
                module._buffers[name] = buffer
                with torch.no_grad():
                    buffer.copy_(values)
        restore_rng(random_states)


@contextmanager
def _telling(advice: str) -> Iterator[None]:
    """Raise a TrainingError with advice where the block runs out of memory.

    CUDA has a type for it; the CPU allocator says so in words.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not re.search("allocate memory|not enough memory", str(error)):
            raise
        raise TrainingError(advice) from error


def _describe(ready: Ready, rows: int, width: int) -> str:
    what = "slots" if ready.run.data.packing else "rows"
    return f"{rows:,} {what} of {width:,} tokens"


def _advice(ready: Ready, rows: int, width: int) -> str:
    data, training = ready.run.data, ready.run.training
    name, size = "training.per_device_train_batch_size", training.per_device_train_batch_size
    if not data.packing and data.max_tokens_per_batch is not None:
        name, size = "data.max_tokens_per_batch", data.max_tokens_per_batch
    more = "" if training.gradient_checkpointing else "; or set training.gradient_checkpointing"
    return (
        f"the largest batch of this run, {_describe(ready, rows, width)}, does not fit into memory "
        f"on {ready.device}; lower {name} (now {size:,}) or data.max_length (now "
        f"{data.max_length:,}){more}."
    )
