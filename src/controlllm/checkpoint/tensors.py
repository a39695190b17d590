"""What of a model is trained, what model it is, and putting the trained tensors back."""

import json
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from controlllm.expansion.modeling import ControlLLMForCausalLM
from controlllm.expansion.sidecar import (
    base_fingerprint,
    copy_tensors,
    sidecar_config,
    sidecar_tensors,
)

__all__ = ["describe_model", "restore_tensors", "trained_tensors"]


def trained_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a checkpoint holds of a model, by name (the model's own tensors, not copies).

    Of an expanded model these are the tensors of its sidecar, of any other all its parameters.
    """
    if isinstance(model, ControlLLMForCausalLM):
        return sidecar_tensors(model)
    return dict(model.named_parameters())


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """What is needed to build the model again around its trained tensors, as plain JSON.

    Returns:
        `method` ("control" or "full"), and `config`: the sidecar's, or the model's own.
    """
    if isinstance(model, ControlLLMForCausalLM):
        base_fingerprint(model)
        return {"method": "control", "config": sidecar_config(model.config)}
    config = json.loads(model.config.to_json_string())
    config |= {
        "architectures": [type(model).__name__],
        "dtype": str(model.dtype).removeprefix("torch."),
        "_name_or_path": model.config.name_or_path,
    }
    return {"method": "full", "config": config}


def restore_tensors(model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into the model, in place.

    Raises:
        CheckpointError: if names or shapes differ: the model was set up in another way than the
            one that was saved. Nothing is copied then.
    """
    copy_tensors(trained_tensors(model), tensors, "the checkpoint")
