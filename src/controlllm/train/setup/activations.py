"""What of the activations is kept for backward, and compiled blocks.

| `gradient_checkpointing` | kept of a block | computed again in backward |
|---|---|---|
| false | everything | nothing |
| true, policy `full` | its input | the whole block |
| true, policy `selective` | also results of matrix products and attention | all else |

Frozen blocks below the first expanded one keep nothing in any case: nothing that they compute needs
a gradient, so autograd does not see them.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from controlllm.expansion import Interpolator
from controlllm.train.config.training_config import TrainingConfig

__all__ = ["compile_blocks", "enable_checkpointing"]


def enable_checkpointing(model: PreTrainedModel, training: TrainingConfig) -> None:
    """Let blocks compute activations again, as a run asks for; in place."""
    if not training.gradient_checkpointing:
        return
    # The older of the two names is all that transformers 5.17 has.
    newer, older = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    enable = getattr(model, newer if hasattr(type(model), newer) else older)
    settings: dict[str, Any] = {"use_reentrant": False}
    if training.gradient_checkpointing_policy == "selective":
        settings["context_fn"] = _keep_products
    enable(settings)
    # It also makes embeddings ask for gradients, which only the reentrant kind needs: frozen blocks
    # below the first expanded one would run a backward pass for nothing.
    model.disable_input_require_grads()


def _keep_products() -> Any:
    """Contexts for forward and recomputation: results of the expensive operations are kept."""
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    return create_selective_checkpoint_contexts(partial(_policy, _expensive()))


def _policy(expensive: frozenset[Any], context: Any, operation: Any, *args: Any, **kw: Any) -> Any:
    from torch.utils.checkpoint import CheckpointPolicy

    keep = operation in expensive
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _expensive() -> frozenset[Any]:
    aten = torch.ops.aten
    names: tuple[str, ...] = ("mm", "addmm", "bmm", "_scaled_dot_product_flash_attention")
    names += ("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")
    names += ("_scaled_dot_product_flash_attention_for_cpu",)
    found = (getattr(aten, name, None) for name in names)
    return frozenset(operation.default for operation in found if operation is not None)


def compile_blocks(units: list[nn.Module]) -> None:
    """Compile each block and each copy by itself, in place; names of parameters stay.

    Args:
        units: what is sharded as one (`sharding_units`): frozen blocks and copies; interpolators
            are too small to gain.
    """
    for unit in units:
        if not isinstance(unit, Interpolator):
            unit.compile()
