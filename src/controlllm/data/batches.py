"""Step 7: examples -> the tensors of a batch, padded or packed.

B rows or slots, T tokens of the longest row (padded) or of a slot (packed).

| key | padded | packed |
|---|---|---|
| `input_ids`, `labels` | (B, T) | (1, B*T) |
| `attention_mask` | (B, T), 1 = real | - (documents are told by `cu_seq_lens_*`) |
| `position_ids` | - | (1, B*T), starting again at 0 with each document |
| `cu_seq_lens_q`, `cu_seq_lens_k` | - | (documents + 1), int32: their starts, then the end |
| `max_length_q`, `max_length_k` | - | int, the longest document |
| `origin` | (B, T), int8 | (1, B*T), int8: `TRAIN`, `REPLAY`, `REHEARSAL` or `PADDING` |

The unused end of a slot is a document of its own with origin `PADDING` and no target.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from controlllm.common.losses import IGNORE_INDEX
from controlllm.data.tokenized import Example

__all__ = [
    "PADDING",
    "REHEARSAL",
    "REPLAY",
    "TRAIN",
    "Batch",
    "Member",
    "model_inputs",
    "packed_batch",
    "padded_batch",
]

TRAIN, REPLAY, REHEARSAL, PADDING = 0, 1, 2, -1
"""Where a token comes from, as `origin` says."""

Batch: TypeAlias = dict[str, Any]
"""Key -> tensor (or int), see the table above."""

Member: TypeAlias = tuple[Example, int]
"""(example, origin)."""

MULTIPLE = 8
"""Padded rows are as long as a multiple of this, for the matrix units of accelerators."""


def padded_batch(members: Sequence[Member], max_length: int, pad_id: int) -> Batch:
    """Rows padded on the right to the longest, rounded up to 8 but never over `max_length`."""
    longest = max(len(example) for example, _ in members)
    width = max(longest, min(-(-longest // MULTIPLE) * MULTIPLE, max_length))
    shape = (len(members), width)
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "labels": torch.full(shape, IGNORE_INDEX),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "origin": torch.full(shape, PADDING, dtype=torch.int8),
    }
    for row, (example, origin) in enumerate(members):
        end = len(example)
        batch["input_ids"][row, :end] = torch.from_numpy(example.input_ids)
        batch["labels"][row, :end] = torch.from_numpy(example.labels)
        batch["attention_mask"][row, :end] = 1
        batch["origin"][row, :end] = origin
    return batch


def packed_batch(slots: Sequence[Sequence[Member]], max_length: int, pad_id: int) -> Batch:
    """Slots of exactly `max_length` tokens, one after the other in a single row."""
    total = len(slots) * max_length
    input_ids, labels = torch.full((1, total), pad_id), torch.full((1, total), IGNORE_INDEX)
    origin = torch.full((1, total), PADDING, dtype=torch.int8)
    starts: list[int] = []
    for number, slot in enumerate(slots):
        start = number * max_length
        for example, source in slot:
            end = start + len(example)
            input_ids[0, start:end] = torch.from_numpy(example.input_ids)
            labels[0, start:end] = torch.from_numpy(example.labels)
            origin[0, start:end] = source
            starts.append(start)
            start = end
        if start < (number + 1) * max_length:
            starts.append(start)
    lengths = torch.tensor([*starts, total], dtype=torch.int32)
    return {"input_ids": input_ids, "labels": labels, "origin": origin, **_document_keys(lengths)}


def _document_keys(cu_seq_lens: Tensor) -> Batch:
    """What attention needs to keep documents apart, by the names of transformers' flash keys."""
    lengths = cu_seq_lens.diff()
    starts = cu_seq_lens[:-1].repeat_interleave(lengths)
    longest = int(lengths.max())
    return {
        "position_ids": (torch.arange(len(starts)) - starts)[None],
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def model_inputs(batch: Mapping[str, Any]) -> Batch:
    """What a model's `forward` takes of a batch: all but `origin`.

    `use_cache` is off: no step needs a cache, and with one transformers no longer sees from
    restarting positions that documents are packed, so that `sdpa` and `eager` would attend across
    them.
    """
    return {key: value for key, value in batch.items() if key != "origin"} | {"use_cache": False}
