"""Alpha of each row in the V1 model runner.

A logits processor is what the runner tells of every change in its batch. This one changes no
logits: it keeps each row's alpha, for the forward pass to read.
"""

import math
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from controlllm.integrations.vllm.rows import rows_of
from controlllm.integrations.vllm.words import alpha_of
from vllm import SamplingParams

__all__ = ["RequestAlphas"]


class RequestAlphas(LogitsProcessor):
    """Keeps `Rows.requests` in the order of the batch."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request that says what is not known, or an alpha out of range (ConfigError)."""
        alpha_of(sampling_params.extra_args)

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.rows = rows_of(vllm_config, device)
        # Changed here, copied in one go.
        size = self.rows.requests.shape
        self.alphas = torch.full(size, math.nan, pin_memory=is_pin_memory)

    def is_argmax_invariant(self) -> bool:
        """It changes no logits."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch: in this order requests leave, come, and move."""
        if batch_update is None:
            return
        alphas = self.alphas
        for row in batch_update.removed:
            alphas[row] = math.nan
        for row, params, _, _ in batch_update.added:
            alphas[row] = alpha_of(params.extra_args) if params else math.nan
        for source, target, how in batch_update.moved:
            swapped = how == MoveDirectionality.SWAP
            alphas[source], alphas[target] = (
                alphas[target].item() if swapped else math.nan,
                alphas[source].item(),
            )
        self.rows.requests.copy_(alphas, non_blocking=True)

    def apply(self, logits: Tensor) -> Tensor:
        """The same logits."""
        return logits
