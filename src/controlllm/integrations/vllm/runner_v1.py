"""Alphas of each row in the V1 model runner.

A logits processor is what the runner tells of every change in its batch. This one changes no
logits: it keeps each row's alphas, for the forward pass to read.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from controlllm.integrations.vllm.names import variant
from controlllm.integrations.vllm.rows import rows_of
from controlllm.integrations.vllm.words import alphas_of
from vllm import SamplingParams

__all__ = ["RequestAlphas"]


class RequestAlphas(LogitsProcessor):
    """Keeps `Rows.requests` in the order of the batch."""

    sidecars: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request that says what is not known, or an alpha out of range (ConfigError)."""
        alphas_of(sampling_params.extra_args, cls.sidecars)

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.rows = rows_of(vllm_config, device)
        # Changed here, copied in one go.
        self.alphas = torch.empty(self.rows.requests.shape, pin_memory=is_pin_memory)
        self.alphas[:] = self.rows.rest

    def is_argmax_invariant(self) -> bool:
        """It changes no logits."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch: in this order requests leave, come, and move."""
        if batch_update is None:
            return
        alphas, rest = self.alphas, self.rows.rest
        for row in batch_update.removed:
            alphas[row] = rest
        for row, params, _, _ in batch_update.added:
            said = params.extra_args if params else None
            alphas[row] = torch.tensor(alphas_of(said, self.rows.sidecars))
        for source, target, how in batch_update.moved:
            one, other = alphas[[source, target]]
            alphas[target] = one
            alphas[source] = other if how == MoveDirectionality.SWAP else rest
        self.rows.requests.copy_(alphas, non_blocking=True)

    def apply(self, logits: Tensor) -> Tensor:
        """The same logits."""
        return logits


def __getattr__(name: str) -> type:
    """The class that knows the names of sidecars: vLLM asks for it in each of its processes."""
    return variant(RequestAlphas, name)
