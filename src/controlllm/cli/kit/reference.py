"""The base that a model is compared with: what it carries, or one that is named beside it."""

from typing import Any

from transformers import PreTrainedModel

from controlllm.checkpoint import LoadOptions, load_model
from controlllm.common.adapters import carries_base
from controlllm.common.errors import ConfigError
from controlllm.evaluate import Reference, tokenizer_identity

__all__ = ["reference_of"]


def reference_of(
    model: PreTrainedModel, tokenizer: Any, path: str | None, load: LoadOptions
) -> Reference | None:
    """The base of a model; None where it carries none, and none is named.

    Args:
        model: the trained model.
        tokenizer: that makes its inputs.
        path: the base of a model that does not carry it.
        load: how that is loaded.

    Raises:
        ConfigError: the model carries its base and another one is named, or what is named is no
            base, or has another tokenizer.
    """
    if path is None:
        return Reference(model) if carries_base(model) else None
    if carries_base(model):
        raise ConfigError(
            f"reference={path!r}: the model carries its base, and is compared with that; leave "
            "--reference out."
        )
    base, other = load_model(path, load)
    if carries_base(base):
        raise ConfigError(
            f"reference={path!r} carries a base of its own, so it is none: give the model that it "
            "was trained from, or a collapsed export of it."
        )
    if tokenizer_identity(other) != tokenizer_identity(tokenizer):
        raise ConfigError(
            f"reference={path!r} has another tokenizer than the model: the two would read other "
            "tokens, and their numbers could not be compared. Give the base that the model was "
            "trained from."
        )
    return Reference(model, copy=base)
