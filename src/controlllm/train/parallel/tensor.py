"""Tensor parallelism: the matrices of each block in parts that compute together.

A block's projections are cut by columns and rows (Megatron-LM, arXiv 1909.08053), as the model's
own plan says (`base_model_tp_plan` of its config); frozen blocks and copies alike. Norms,
embeddings, head and interpolators stay whole. Processes of one tensor group see the same rows.
"""

from typing import Any

from torch import nn

from controlllm.common.errors import ConfigError

__all__ = ["block_plan", "cut_block"]

KNOWN = ("colwise", "rowwise")


def block_plan(config: Any, size: int) -> dict[str, str]:
    """How `size` processes cut a block's matrices: their names in it -> `colwise` or `rowwise`.

    Raises:
        ConfigError: the model has no plan, one with styles other than `colwise` and `rowwise`, or
            heads that `size` does not divide.

    >>> from transformers import LlamaConfig
    >>> block_plan(LlamaConfig(), 2)["self_attn.o_proj"]
    'rowwise'
    """
    kind = getattr(config, "model_type", type(config).__name__)
    plan = getattr(config, "base_model_tp_plan", None) or {}
    prefix = "layers.*."
    own = {n.removeprefix(prefix): style for n, style in plan.items() if n.startswith(prefix)}
    if not own:
        raise ConfigError(
            f"parallel.tensor_size={size}: {kind} has no plan for it in transformers; set 1."
        )
    if others := sorted(set(own.values()) - set(KNOWN)):
        raise ConfigError(
            f"parallel.tensor_size={size}: the plan of {kind} asks for {', '.join(others)}, which "
            "is not supported; set 1."
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None)
        if heads is not None and heads % size:
            raise ConfigError(
                f"parallel.tensor_size={size} does not divide {name}={heads} of {kind}."
            )
    return own


def cut_block(block: nn.Module, mesh: Any, plan: dict[str, str]) -> None:
    """Cut the matrices of a block over a tensor group, in place, as `block_plan` says."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    styles = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    parallelize_module(block, mesh, {name: styles[style]() for name, style in plan.items()})
