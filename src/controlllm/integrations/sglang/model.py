"""The model class on SGLang's transformers backend; written for its interface, not run.

The backend makes a headless `AutoModel`, cuts its linear layers over the ranks, and gives every
attention module by its `layer_idx` a KV cache: the copies have theirs behind the base's.
"""

from typing import Any

from sglang.srt.models.transformers import TransformersForCausalLM

from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.integrations.sglang.checks import check

__all__ = ["ControlLLMForCausalLM", "EntryClass"]


class ControlLLMForCausalLM(TransformersForCausalLM):
    """An expanded model in SGLang, for all requests at the alpha it was saved with."""

    def __init__(
        self, config: ControlLLMConfig, quant_config: Any = None, prefix: str = ""
    ) -> None:
        from sglang.srt.distributed import get_pp_group

        check(config, quant_config, get_pp_group().world_size)
        ControlLLMConfig.register_model()
        super().__init__(config=config, quant_config=quant_config, prefix=prefix)


EntryClass = ControlLLMForCausalLM
"""What SGLang looks for in each module of the package."""
