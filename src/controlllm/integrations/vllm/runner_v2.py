"""Alphas of each request in the V2 model runner.

A request has a slot for as long as it lives; each batch names the slots of its rows, in order.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from controlllm.integrations.vllm.names import variant
from controlllm.integrations.vllm.rows import rows_of
from controlllm.integrations.vllm.words import alphas_of
from vllm import SamplingParams

__all__ = ["AlphaState", "RequestWords"]


class AlphaState(DefaultModelState):
    """Keeps each request's alphas, and writes those of a batch before its forward pass."""

    def __init__(self, vllm_config: Any, *args: Any) -> None:
        super().__init__(vllm_config, *args)
        self.rows = rows_of(vllm_config, self.device)
        self.slots = self.rows.rest.repeat(self.max_num_reqs, 1)

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """A request comes into a slot."""
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        said = params.extra_args if params else None
        self.slots[req_index] = torch.tensor(alphas_of(said, self.rows.sidecars))

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """Before a forward pass: the alphas of its requests, in its order."""
        slots = torch.from_numpy(input_batch.idx_mapping_np)
        self.rows.requests[: len(slots)].copy_(self.slots[slots], non_blocking=True)
        return super().prepare_inputs(input_batch, req_states)


class RequestWords(LogitsProcessor):
    """Refuses what `RequestAlphas` refuses in the V1 runner; it changes no logits."""

    sidecars: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request that says what is not known, or an alpha out of range (ConfigError)."""
        alphas_of(sampling_params.extra_args, cls.sidecars)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """No request's logits are changed."""
        return False

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """The same logits."""
        return logits


def __getattr__(name: str) -> type:
    """The class that knows the names of sidecars: vLLM asks for it in each of its processes."""
    return variant(RequestWords, name)
