"""What of the activations is kept for backward, and compiled blocks.

| `gradient_checkpointing` | kept of a block | computed again in backward |
|---|---|---|
| false | everything | nothing |
| true, policy `full` | its input | the whole block |
| true, policy `selective` | also results of matrix products and attention | all else |

Frozen blocks below the first expanded one keep nothing in any case: nothing that they compute needs
a gradient, so autograd does not see them.
"""

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

    names: tuple[str, ...] = ("mm", "addmm", "bmm", "_scaled_dot_product_flash_attention")
    names += ("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")
    names += ("_scaled_dot_product_flash_attention_for_cpu",)
    found = (getattr(torch.ops.aten, name, None) for name in names)
    return create_selective_checkpoint_contexts(
        [operation.default for operation in found if operation is not None]
    )


def compile_blocks(units: list[nn.Module]) -> None:
    """Compile each of `sharding_units` by itself, in place; names of parameters stay."""
    for unit in units:
        if not isinstance(unit, Interpolator):  # too small to gain
            unit.compile()
