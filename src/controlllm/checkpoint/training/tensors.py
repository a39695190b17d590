"""What of a model is trained, what model it is, and putting the trained tensors back."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from controlllm.checkpoint.training.kinds import kind_of
from controlllm.common.tensor_copies import copy_tensors

__all__ = ["describe_model", "restore_tensors", "trained_tensors"]


def trained_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a checkpoint holds of a model, by name (the model's own tensors, not copies).

    Of an expanded model these are the tensors of its sidecar, of one with adapters those, of any
    other all parameters that train (`kinds`).
    """
    return kind_of(model).tensors(model)


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """What is needed to build the model again around its trained tensors, as plain JSON.

    Which base it is is noted when this is first called: do so before anything trains. Collective
    where the model lies in parts.

    Returns:
        `method` (the name of its row in `kinds`), `config` (the sidecar's, PEFT's, the model's own,
        ...), and for adapters `base`.
    """
    kind = kind_of(model)
    return {"method": kind.name, **kind.describe(model)}


def restore_tensors(model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into the model, in place.

    Raises:
        CheckpointError: if names or shapes differ: the model was set up in another way than the
            one that was saved. Nothing is copied then.
    """
    copy_tensors(trained_tensors(model), tensors, "the checkpoint")
