"""The table of tiny architectures that every law is checked on: a new one joins by one row.

Weights are random and large enough (standard deviation 0.3) that a wrong cache slot, mask or
position changes the logits by more than any tolerance used here.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

__all__ = ["ARCHITECTURES", "VOCAB", "Architecture", "make_base"]

VOCAB = 61
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
WINDOWED: dict[str, Any] = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
UNDROPPED: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Architecture:
    """One row.

    Attributes:
        model_type: as transformers' `AutoConfig` knows it.
        settings: config values beside the common ones.
        tied: whether embedding and head share one weight.
    """

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    tied: bool = False


ARCHITECTURES = {
    "llama": Architecture("llama"),
    "llama-tied": Architecture("llama", tied=True),
    "mistral": Architecture("mistral", {"sliding_window": 4}),
    "qwen2-windowed": Architecture(
        "qwen2", {**WINDOWED, "use_sliding_window": True, "max_window_layers": 1}
    ),
    "qwen3": Architecture("qwen3", {"attention_bias": True}),
    "gemma2": Architecture("gemma2", {**WINDOWED, "query_pre_attn_scalar": 8}),
    "gemma3": Architecture("gemma3_text", {**WINDOWED, "query_pre_attn_scalar": 8}),
    "phi3": Architecture("phi3"),
    "olmo2": Architecture("olmo2"),
    "gpt-neox": Architecture("gpt_neox"),
    "gpt2": Architecture("gpt2", {"n_positions": 64, **UNDROPPED}, tied=True),
    "mixtral": Architecture("mixtral", {"num_local_experts": 4}),
    "qwen3-moe": Architecture("qwen3_moe", EXPERTS),
}


@cache
def _weights(name: str) -> dict[str, torch.Tensor]:
    """The weights of one row: made once, biases and norms off their trivial start."""
    model = _build(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _build(name: str, **settings: Any) -> PreTrainedModel:
    row = ARCHITECTURES[name]
    attention = settings.pop("attn_implementation", None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            row.model_type, tie_word_embeddings=row.tied, **COMMON | row.settings | settings
        )
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def make_base(name: str, **settings: Any) -> PreTrainedModel:
    """A fresh tiny model of a row of the table; equal calls give equal weights.

    Args:
        name: the row.
        **settings: config values to change, and `attn_implementation`.
    """
    model = _build(name, **settings)
    model.load_state_dict(_weights(name))
    model.tie_weights()
    return model
