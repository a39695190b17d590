"""Examples -> the tensors of a batch, padded or packed.

B rows or slots, T tokens of the longest row (padded) or of a slot (packed).

| key | padded | packed |
|---|---|---|
| `input_ids`, `labels` | (B, T) | (1, B*T) |
| `attention_mask` | (B, T), 1 = real | - (documents are told by `cu_seq_lens_*`) |
| `position_ids` | - | (1, B*T), starting again at 0 with each document |
| `cu_seq_lens_q`, `cu_seq_lens_k` | - | (documents + 1), int32: their starts, then the end |
| `max_length_q`, `max_length_k` | - | int, the longest document |
| `origin` | (B, T), int8 | (1, B*T), int8: `TRAIN`, `REPLAY`, `REHEARSAL` or `PADDING` |

The unused end of a slot is a document of its own with origin `PADDING` and no target. Its positions
stay at 0: by them a loop of one's own, which hands on no `origin`, tells padding (`token_mask`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from controlllm.common.attention.documents import document_keys
from controlllm.common.errors import DataError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.data.config.data_config import DataConfig
from controlllm.data.config.hooks import COLLATORS
from controlllm.data.examples.encode import Example

__all__ = [
    "PADDING",
    "REHEARSAL",
    "REPLAY",
    "TRAIN",
    "Batch",
    "Member",
    "collate",
    "model_inputs",
    "packed_batch",
    "pad_id",
    "padded_batch",
    "padded_width",
]

TRAIN, REPLAY, REHEARSAL, PADDING = 0, 1, 2, -1
"""Where a token comes from, as `origin` says."""

Batch: TypeAlias = dict[str, Any]
"""Key -> tensor (or int), see the table above."""

Member: TypeAlias = tuple[Example, int]
"""(example, origin)."""

MULTIPLE = 8
"""Padded rows are as long as a multiple of this, for the matrix units of accelerators."""


def padded_width(longest: int, max_length: int) -> int:
    """Tokens of a padded row: the longest of the batch, rounded up but never over `max_length`."""
    return max(longest, min(-(-longest // MULTIPLE) * MULTIPLE, max_length))


def collate(groups: Sequence[Sequence[Member]], config: DataConfig, pad_id: int) -> Batch:
    """Slots (packed) or rows, each a group of one (padded) -> a batch, by the config's collator."""
    name = config.collator or ("packed" if config.packing else "padded")
    return COLLATORS.get(name)(groups, config.max_length, pad_id)


@COLLATORS.register("padded")
def padded_batch(rows: Sequence[Sequence[Member]], max_length: int, pad_id: int) -> Batch:
    """Rows padded on the right to the longest, rounded up to 8 but never over `max_length`."""
    members = [member for row in rows for member in row]
    longest = max(len(example) for example, _ in members)
    arrays = _arrays(len(members), padded_width(longest, max_length), pad_id)
    for row, (example, origin) in enumerate(members):
        _put(arrays, row, 0, example, origin)
    tensors = _tensors(arrays)
    return {**tensors, "attention_mask": (tensors["origin"] != PADDING).long()}


@COLLATORS.register("packed")
def packed_batch(slots: Sequence[Sequence[Member]], max_length: int, pad_id: int) -> Batch:
    """Slots of exactly `max_length` tokens, one after the other in a single row.

    Raises:
        DataError: a slot holds more than `max_length` tokens.
    """
    arrays = _arrays(1, len(slots) * max_length, pad_id)
    starts: list[int] = []
    for number, slot in enumerate(slots):
        start, end = number * max_length, (number + 1) * max_length
        for example, origin in slot:
            starts.append(start)
            if example.starts is not None:
                starts += (example.starts + start).tolist()
            if start + len(example) > end:
                raise DataError(
                    f"slot {number} of a batch holds {start + len(example) - end + max_length} "
                    f"tokens or more, but max_length={max_length}."
                )
            _put(arrays, 0, start, example, origin)
            start += len(example)
        if start < end:
            starts.append(start)
    bounds = np.array([*starts, len(slots) * max_length], dtype=np.int32)
    tensors, keys = _tensors(arrays), document_keys(torch.from_numpy(bounds))
    keys["position_ids"][tensors["origin"] == PADDING] = 0
    return {**tensors, **keys}


def _arrays(rows: int, width: int, pad_id: int) -> dict[str, NDArray[Any]]:
    """Arrays (rows, width) of padding (numpy is quick at slices)."""
    return {
        "input_ids": np.full((rows, width), pad_id, dtype=np.int64),
        "labels": np.full((rows, width), IGNORE_INDEX, dtype=np.int64),
        "origin": np.full((rows, width), PADDING, dtype=np.int8),
    }


def _put(arrays: Batch, row: int, start: int, example: Example, origin: int) -> None:
    place = row, slice(start, start + len(example))
    arrays["input_ids"][place] = example.input_ids
    arrays["labels"][place] = example.labels
    arrays["origin"][place] = origin


def _tensors(arrays: Batch) -> Batch:
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def model_inputs(batch: Mapping[str, Any]) -> Batch:
    """What a model's `forward` takes of a batch: all but `origin`.

    `use_cache` is off: no step needs a cache, and with one transformers no longer sees from
    restarting positions that documents are packed, so that `sdpa` and `eager` would attend across
    them.
    """
    return {key: value for key, value in batch.items() if key != "origin"} | {"use_cache": False}


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id serves where the mask hides it, and EOS is always there."""
    own = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if own is None else own)
