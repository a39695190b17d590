"""From the alphas of each request to those of each token of a forward pass.

vLLM packs the tokens of all requests into one row, request after request. Alphas lie in tensors
that are made once and never replaced, so that captured graphs read what is in them now.

Shapes: R requests (rows of the batch), T tokens, K sidecars; K is 1 where one has no name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from controlllm.common.errors import ModelError
from controlllm.integrations.vllm.words import at_rest

__all__ = ["Rows", "as_saved", "dial_of", "per_token", "rows_of", "sidecar_names"]

_PLACE = "controlllm.rows"


class Rows:
    """The alphas of the batch that an engine runs now; NaN is as saved.

    Args:
        max_requests: the most rows of a batch.
        max_tokens: the most tokens of a forward pass.
        device: where the model is.
        sidecars: the names of the sidecars; none where one has no name.

    Attributes:
        rest: the alphas of a request that says nothing (K,), float32, on the CPU.
        requests: those of each row of the batch (R, K), float32.
        tokens: those of each token of the forward pass that runs (T, K), float32.
    """

    def __init__(
        self,
        max_requests: int,
        max_tokens: int,
        device: torch.device | str,
        sidecars: Sequence[str] = (),
    ) -> None:
        self.sidecars = sidecars
        self.rest = torch.tensor(at_rest(sidecars))
        self.requests = self.rest.to(device).repeat(max_requests, 1)
        self.tokens = self.rest.to(device).repeat(max_tokens, 1)

    def spread(self, metadata: Any, tokens: int) -> Tensor:
        """Write each token's alphas for a forward pass, and give them (T, K).

        Args:
            metadata: vLLM's attention metadata by layer; empty where it only measures its memory.
            tokens: how many tokens the forward pass has, padding among them.

        Raises:
            ModelError: the metadata do not tell which tokens are whose.
        """
        own = self.tokens[:tokens]
        if not metadata:
            return own.copy_(self.rest.expand_as(own))
        own.copy_(per_token(self.requests, _starts(metadata), tokens))
        return own


def per_token(alphas: Tensor, starts: Tensor, tokens: int) -> Tensor:
    """Each token's alphas (T, K) by its request's; 0 behind the last request's tokens (padding).

    Args:
        alphas: those of each request (R or more, K).
        starts: where each request's tokens begin, and where the last one's end (R + 1,).
        tokens: T.

    >>> per_token(torch.tensor([[0.5], [1.0]]), torch.tensor([0, 3, 4]), 5).squeeze(1)
    tensor([0.5000, 0.5000, 0.5000, 1.0000, 0.0000])
    """
    ends = starts[1:]
    known = torch.cat([alphas[: len(ends)], torch.zeros_like(alphas[:1])])
    positions = torch.arange(tokens, device=alphas.device, dtype=ends.dtype)
    return known[torch.searchsorted(ends, positions, right=True)]


def rows_of(vllm_config: Any, device: Any = None) -> Rows:
    """The rows of an engine, made when they are first asked for."""
    # vLLM's own place for what custom operators look up while a forward pass runs.
    places = vllm_config.compilation_config.static_forward_context
    if _PLACE not in places:
        scheduler = vllm_config.scheduler_config
        device = vllm_config.device_config.device if device is None else device
        sidecars = sidecar_names(vllm_config.model_config.hf_config)
        sizes = scheduler.max_num_seqs, scheduler.max_num_batched_tokens
        places[_PLACE] = Rows(*sizes, device, sidecars)
    rows: Rows = places[_PLACE]
    return rows


def sidecar_names(config: Any) -> tuple[str, ...]:
    """The names of the sidecars in an expanded model's config; none where one has no name."""
    return tuple(one["name"] for one in getattr(config, "sidecars", ()))


def as_saved(alphas: Tensor, saved: float | None) -> Tensor:
    """Alphas with the dial that a part was saved with in the place of NaN, where there is one."""
    return alphas if saved is None else alphas.nan_to_num(saved)


def dial_of(sidecar: int, saved: float | None) -> Callable[[Tensor], Tensor]:
    """The dial of a part: at each forward pass the alphas (1, T, 1) of its tokens.

    Args:
        sidecar: the place of the part's sidecar among K.
        saved: the dial that the part was saved with; None = as trained.
    """
    return lambda x: as_saved(token_alphas(x, sidecar), saved)


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
def token_alphas(x: Tensor, sidecar: int) -> Tensor:
    """A sidecar's alphas (1, T, 1) of the forward pass that runs, for states x (1, T, D).

    An operator of its own: compiled graphs and their stored artifacts hold a call, not a tensor.
    """
    from vllm.forward_context import get_forward_context

    rows: Rows = get_forward_context().no_compile_layers[_PLACE]
    return rows.tokens[: x.shape[1], sidecar].clone().view(1, -1, 1)


@token_alphas.register_fake
def _(x: Tensor, sidecar: int) -> Tensor:
    return x.new_empty((1, x.shape[1], 1), dtype=torch.float32)
