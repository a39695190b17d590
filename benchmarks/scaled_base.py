"""The same model with a larger residual stream: what depends on its scale only, shows.

    python benchmarks/scaled_base.py BASE OUT --scale 16

A Llama becomes a Granite, whose embeddings and branches have multipliers: each state of the stream
is `scale` times what it was, and every norm divides it away again. All weights are the same
numbers, and so are the logits, their gradients by each weight, and hence the path of any optimizer;
with a power of 2 bit for bit. Families of models differ by such a factor, too (Gemma multiplies its
embeddings by the root of its width).
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, GraniteConfig, GraniteForCausalLM, LlamaForCausalLM

from controlllm.common.errors import ConfigError

__all__ = ["with_larger_stream"]


def with_larger_stream(model: LlamaForCausalLM, scale: float) -> GraniteForCausalLM:
    """A new model with the function and the weights of a Llama, its residual stream scaled.

    Raises:
        ConfigError: the model is no Llama, or its heads are of a width that a Granite's are not.
    """
    config = model.config
    head = config.hidden_size // (config.num_attention_heads or 1)
    if config.model_type != "llama" or config.head_dim != head:
        raise ConfigError(f"{config.model_type} cannot be written as a Granite; take a Llama.")
    same = config.to_dict()
    for name in ("model_type", "architectures", "head_dim", "pretraining_tp"):
        same.pop(name, None)
    twin = GraniteForCausalLM(
        GraniteConfig(
            **same | {"rms_norm_eps": config.rms_norm_eps * scale**2},
            embedding_multiplier=scale,
            residual_multiplier=scale,
            attention_multiplier=head**-0.5,
            logits_scaling=1.0,
        )
    )
    twin.load_state_dict(model.state_dict())
    twin.tie_weights()
    module: torch.nn.Module = twin
    module.to(model.dtype)
    return twin.eval()


def main() -> None:
    """Write a scaled base beside a tokenizer (see the module's docstring)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", type=float, default=16.0)
    args = parser.parse_args()
    model = LlamaForCausalLM.from_pretrained(args.base, dtype="auto")
    with_larger_stream(model, args.scale).save_pretrained(args.out)
    AutoTokenizer.from_pretrained(args.base).save_pretrained(args.out)
    print(json.dumps({"base": str(args.base), "scale": args.scale, "out": str(args.out)}))


if __name__ == "__main__":
    main()
