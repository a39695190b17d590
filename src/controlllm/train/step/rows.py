"""Pick the rows of one origin out of a batch, padded or packed.

Shapes: B batch, T tokens; a packed batch is one row in which documents lie one after the other.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["rows_of_origin"]

Selection = tuple[dict[str, Any], Callable[[Tensor], Tensor]]


def rows_of_origin(batch: Mapping[str, Any], origin: int) -> Selection | None:
    """The part of a batch, padded (B, T) or packed (1, B*T), that came from `origin`.

    Returns:
        The part as a batch of the same kind, and a function that takes the same part out of any
        tensor of shape (B, T, ...), or None where nothing in the batch has this origin.
    """
    if "cu_seq_lens_q" in batch:
        return _documents(batch, origin)
    rows = (batch["origin"] == origin).any(dim=1).nonzero().flatten()
    if not rows.numel():
        return None
    # Rows are padded to the longest of the whole batch; the part needs only its own longest.
    length = int((batch["origin"][rows] >= 0).any(dim=0).nonzero().max()) + 1

    def select(tensor: Tensor) -> Tensor:
        return tensor[rows, :length]

    return {k: select(v) for k, v in batch.items() if isinstance(v, Tensor)}, select


def _documents(batch: Mapping[str, Any], origin: int) -> Selection | None:
    """The packed documents of one origin, moved together."""
    starts, ends = batch["cu_seq_lens_q"][:-1], batch["cu_seq_lens_q"][1:]
    chosen = batch["origin"][0, starts.long()] == origin
    lengths = (ends - starts)[chosen]
    if not lengths.numel():
        return None
    keep = torch.repeat_interleave(chosen, (ends - starts).long())
    positions = keep.nonzero().flatten()

    def select(tensor: Tensor) -> Tensor:
        return tensor[:, positions]

    bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0).to(lengths.dtype)])
    longest = int(lengths.max())
    per_token = (kv for kv in batch.items() if isinstance(kv[1], Tensor) and kv[1].dim() >= 2)
    tensors = {k: select(v) for k, v in per_token}
    packing = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    return {**tensors, **packing, "max_length_q": longest, "max_length_k": longest}, select
