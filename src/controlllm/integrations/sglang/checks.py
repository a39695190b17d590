"""What SGLang cannot serve of an expanded model, refused before anything is loaded."""

from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.expansion.method.hf_config import ControlLLMConfig

__all__ = ["check"]


def check(config: ControlLLMConfig, quantisation: Any, pipeline_ranks: int) -> None:
    """Refuse what would give other tokens than the model does (ConfigError, with what to do).

    Args:
        config: the saved model's config.
        quantisation: SGLang's settings to quantise with; None = it does not.
        pipeline_ranks: stages that the layers would be cut into.
    """
    expansion = config.expansion_config()
    refused = {
        "expand_ends=True": (
            expansion.expand_ends,
            "SGLang's transformers backend has plain heads only",
        ),
        f"relaxed_norm={expansion.relaxed_norm!r}": (
            expansion.relaxed_norm is not None,
            "SGLang replaces the norms that this blends",
        ),
        "quantisation": (
            quantisation is not None,
            "interpolators are not quantised",
        ),
        "pipeline parallelism": (
            pipeline_ranks > 1,
            "a copy's KV cache would lie on another stage than its block",
        ),
    }
    for what, (asked, reason) in refused.items():
        if asked:
            raise ConfigError(
                f"SGLang cannot serve an expanded model with {what}: {reason}. `controlllm serve` "
                "does, and vLLM does much of it (docs/integrations/vllm.md)."
            )
