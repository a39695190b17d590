"""From one alpha per request to one per token of a forward pass.

vLLM packs the tokens of all requests into one row, request after request. Alphas lie in tensors
that are made once and never replaced, so that captured graphs read what is in them now.

Shapes: R requests (rows of the batch), T tokens.
"""

import math
from typing import Any

import torch
from torch import Tensor

from controlllm.common.errors import ModelError

__all__ = ["Rows", "per_token", "rows_of"]

_PLACE = "controlllm.rows"


class Rows:
    """The alphas of the batch that an engine runs now; NaN is as trained.

    Attributes:
        requests: one alpha per row of the batch (R,), float32.
        tokens: one per token of the forward pass that runs (T,), float32.
    """

    def __init__(self, max_requests: int, max_tokens: int, device: torch.device | str) -> None:
        self.requests = torch.full((max_requests,), math.nan, device=device)
        self.tokens = torch.full((max_tokens,), math.nan, device=device)

    def spread(self, metadata: Any, tokens: int) -> Tensor:
        """Write each token's alpha for a forward pass, and give them (T,).

        Args:
            metadata: vLLM's attention metadata by layer; empty where it only measures its memory.
            tokens: how many tokens the forward pass has, padding among them.

        Raises:
            ModelError: the metadata do not tell which tokens are whose.
        """
        own = self.tokens[:tokens]
        if not metadata:
            return own.fill_(math.nan)
        own.copy_(per_token(self.requests, _starts(metadata), tokens))
        return own


def per_token(alphas: Tensor, starts: Tensor, tokens: int) -> Tensor:
    """Each token's alpha (T,) by its request's; NaN behind the last request's tokens (padding).

    Args:
        alphas: one per request (R or more,).
        starts: where each request's tokens begin, and where the last one's end (R + 1,).
        tokens: T.

    >>> per_token(torch.tensor([0.0, 1.0]), torch.tensor([0, 3, 4]), 5)
    tensor([0., 0., 0., 1., nan])
    """
    ends = starts[1:]
    known = torch.cat([alphas[: len(ends)], alphas.new_full((1,), math.nan)])
    positions = torch.arange(tokens, device=alphas.device, dtype=ends.dtype)
    return known[torch.searchsorted(ends, positions, right=True)]


def rows_of(vllm_config: Any, device: Any = None) -> Rows:
    """The rows of an engine, made when they are first asked for."""
    # vLLM's own place for what custom operators look up while a forward pass runs.
    places = vllm_config.compilation_config.static_forward_context
    if _PLACE not in places:
        scheduler = vllm_config.scheduler_config
        device = vllm_config.device_config.device if device is None else device
        places[_PLACE] = Rows(scheduler.max_num_seqs, scheduler.max_num_batched_tokens, device)
    rows: Rows = places[_PLACE]
    return rows


def _starts(metadata: Any) -> Tensor:
    """`query_start_loc` of the first layer that has it; all have the same."""
    if isinstance(metadata, dict):
        for one in metadata.values():
            starts = getattr(one, "query_start_loc", None)
            if isinstance(starts, Tensor):
                return starts
    raise ModelError(
        "This attention backend of vLLM does not say which tokens belong to which request, so "
        "alpha cannot be chosen by request. Choose another (--attention-backend FLASH_ATTN), "
        "without micro-batches (--enable-dbo)."
    )


@torch.library.custom_op("controlllm::token_alphas", mutates_args=())
def token_alphas(x: Tensor) -> Tensor:
    """Alphas (1, T, 1) of the forward pass that runs, for states x (1, T, D).

    An operator of its own: compiled graphs and their stored artifacts hold a call, not a tensor.
    """
    from vllm.forward_context import get_forward_context

    rows: Rows = get_forward_context().no_compile_layers[_PLACE]
    return rows.tokens[: x.shape[1]].clone().view(1, -1, 1)


@token_alphas.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((1, x.shape[1], 1), dtype=torch.float32)
