"""Attention over packed documents as a loop, under names that transformers can be told.

| name | is | for |
|---|---|---|
| `packed_sdpa` | `sdpa`, per document where a batch is packed | models that support `sdpa` |
| `packed_eager` | plain maths, the same way | models that do not (Gemma 2) |

A batch is packed when `cu_seq_lens_q` is given (the key of transformers' flash attention). Anything
else (padding, generation with a cache, sliding windows) goes the way of `sdpa` or `eager`
unchanged. On CPU the loop is many times faster than the block-diagonal mask that `sdpa` and `eager`
need: its cost is the sum of squares of document lengths instead of the square of their sum. Nothing
is patched: the names enter transformers' public registries.

Shapes: B batch (1 when packed), H heads, T tokens, D width of a head.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from controlllm.common.attention.documents import IN_CHUNKS
from controlllm.common.errors import ModelError

__all__ = ["PackedMask", "packed_attention_for", "register_packed_attention"]

PACKED_NAMES = {"sdpa": "packed_sdpa", "eager": "packed_eager"}

# Keys that change the maths of attention in ways the plain maths below does not know.
UNKNOWN_TO_EAGER = ("s_aux", "position_bias")

Forward = Callable[..., tuple[Tensor, Tensor | None]]


def register_packed_attention() -> None:
    """Make `packed_sdpa` and `packed_eager` known to transformers; calling twice is harmless."""
    AttentionInterface.register(PACKED_NAMES["sdpa"], partial(_attend, sdpa_attention_forward))
    AttentionMaskInterface.register(PACKED_NAMES["sdpa"], partial(_make_mask, sdpa_mask))
    AttentionInterface.register(PACKED_NAMES["eager"], partial(_attend, _eager_forward))
    AttentionMaskInterface.register(PACKED_NAMES["eager"], partial(_make_mask, eager_mask))


def packed_attention_for(implementation: str | None) -> str:
    """The implementation to train packed batches with, given the one a model has now.

    `sdpa` and `eager` get their packed twins; flash and other kernels know `cu_seq_lens_q`
    themselves.
    """
    return PACKED_NAMES.get(implementation or "sdpa", implementation or "sdpa")


class PackedMask:
    """A mask of packed documents that is built only where it is needed.

    Whether `cu_seq_lens_q` is given is known in each layer, but masks are made once before them;
    for long rows building T x T values that no layer reads would cost more than the attention
    itself.

    Args:
        build: the mask function of transformers with all its arguments but sizes and offsets.
        size: T.
        window: how far back a token may look, None for no limit.
        always: build even where `is_causal` says the same.
    """

    def __init__(
        self, build: Callable[..., Tensor | None], size: int, window: int | None, always: bool
    ) -> None:
        self._build = build
        self._size = size
        self._window = window
        self._always = always
        self._built: dict[tuple[int, int], Tensor | None] = {}

    def whole(self) -> Tensor | None:
        """The block-diagonal mask of the whole row."""
        return self._part(0, self._size)

    def document(self, start: int, end: int) -> Tensor | None:
        """The mask of one document, None where plain causal attention is the same."""
        fits = self._window is None or end - start <= self._window
        return None if fits and not self._always else self._part(start, end)

    def _part(self, start: int, end: int) -> Tensor | None:
        if (start, end) not in self._built:
            size = end - start
            self._built[start, end] = self._build(
                q_length=size, kv_length=size, q_offset=start, kv_offset=start
            )
        return self._built[start, end]


def _make_mask(make: Callable[..., Tensor | None], **arguments: Any) -> Tensor | PackedMask | None:
    """The mask as `make` builds it, put off for rows of packed documents.

    transformers asks for a full mask without padding, offset or vmap only when it saw positions
    restart.
    """
    rest = dict(arguments)
    size, keys = rest.pop("q_length"), rest.pop("kv_length")
    offsets = (rest.pop("q_offset", 0), rest.pop("kv_offset", 0))
    packed = (
        arguments.get("attention_mask") is None
        and not arguments.get("allow_is_causal_skip", True)
        and not arguments.get("use_vmap", False)
        and size == keys > 1
        and all(isinstance(offset, int) and offset == 0 for offset in offsets)
    )
    if not packed:
        return make(**arguments)
    return PackedMask(partial(make, **rest), size, rest.get("local_size"), make is eager_mask)


def _attend(
    forward: Forward,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | PackedMask | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """As transformers' interface: q, k, v (B, H, T, D) -> (B, T, H, D), and weights or None."""
    ends = kwargs.pop("cu_seq_lens_q", None)
    if ends is None:
        mask = attention_mask.whole() if isinstance(attention_mask, PackedMask) else attention_mask
        return forward(module, query, key, value, mask, **kwargs)
    bounds = ends.tolist()
    _check_packed(module, query, key, bounds)
    outputs = []
    for start, end in pairwise(bounds):
        part = slice(start, end)
        if isinstance(attention_mask, PackedMask):
            mask = attention_mask.document(start, end)
        else:
            # Causal order and windows look the same from every start, so a document's square of the
            # mask is its own mask.
            mask = None if attention_mask is None else attention_mask[..., part, part]
        rows = (tensor[:, :, part] for tensor in (query, key, value))
        outputs.append(forward(module, *rows, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def _check_packed(module: nn.Module, query: Tensor, key: Tensor, bounds: list[int]) -> None:
    length = query.shape[2]
    if query.shape[0] != 1 or key.shape[2] != length or bounds[0] != 0 or bounds[-1] != length:
        raise ModelError(
            f"cu_seq_lens_q covers {bounds[-1]} tokens, but attention got queries "
            f"{tuple(query.shape)} and {key.shape[2]} keys; "
            "a packed batch is one row, without a cache."
        )
    if getattr(getattr(module, "config", None), "attention_chunk_size", None):
        raise ModelError(IN_CHUNKS)


def _eager_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(cap(q k^T * scaling) + mask) v, in the precision of transformers' eager attention."""
    unknown = [name for name in UNKNOWN_TO_EAGER if kwargs.get(name) is not None]
    if unknown:
        raise ModelError(
            f"packed attention does not support {unknown[0]!r}; set data.packing=false."
        )
    groups = getattr(module, "num_key_value_groups", 1)
    scores = query @ repeat_kv(key, groups).transpose(2, 3)
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = nn.functional.dropout(weights, dropout, module.training) @ repeat_kv(value, groups)
    return output.transpose(1, 2).contiguous(), weights
