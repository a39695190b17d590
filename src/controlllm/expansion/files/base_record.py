"""Which base a model trains on, noted while that base is still itself."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from controlllm.common.errors import CheckpointError
from controlllm.expansion.files.fingerprint import base_tensors, fingerprint

__all__ = ["architecture_of", "base_record", "check_base", "forget_base", "origin", "require_base"]

_NOTE = "_base_record"


def base_record(model: PreTrainedModel) -> dict[str, Any]:
    """Name, size and fingerprint of the base that a model is now, or was when first asked.

    Ask before training where the base's own weights train. Collective where the model lies in
    parts.
    """
    known: dict[str, Any] | None = vars(model).get(_NOTE)
    if known is None:
        tensors = dict(base_tensors(model))
        known = {
            **origin(model),
            "num_parameters": sum(tensor.numel() for tensor in tensors.values()),
            "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
            "fingerprint": fingerprint(model),
        }
        vars(model)[_NOTE] = known
    return dict(known)


def origin(model: PreTrainedModel) -> dict[str, Any]:
    """Where a model comes from: name or path, revision, and its class."""
    return {
        "name_or_path": getattr(model.config, "_name_or_path", "") or "",
        "revision": getattr(model.config, "_commit_hash", None),
        "architecture": architecture_of(model),
    }


def architecture_of(model: nn.Module) -> str:
    """The name of a model's class; FSDP2 puts one of its own (`FSDPLlamaForCausalLM`) before it."""
    sharded = "FSDPModule"
    for cls in type(model).__mro__:
        if cls.__name__ != sharded and all(base.__name__ != sharded for base in cls.__bases__):
            return cls.__name__
    return type(model).__name__


def forget_base(model: PreTrainedModel) -> None:
    """Forget what was recorded of a model's base: from now on it is its own base."""
    vars(model).pop(_NOTE, None)


def check_base(base: nn.Module, recorded: dict[str, Any], what: str) -> None:
    """Check that a base is the recorded one (CheckpointError)."""
    own = getattr(base.config, "_name_or_path", "") or type(base).__name__
    given = {"fingerprint": fingerprint(base), "name_or_path": own}
    require_base(
        given,
        recorded,
        what,
        "pass check_base=False (--load.check_base, of a run --model.check_base false)",
    )


def require_base(
    given: Mapping[str, Any], recorded: Mapping[str, Any], what: str, advice: str
) -> None:
    """Check that a base is the one that something was trained on (CheckpointError)."""
    wanted, got = recorded.get("fingerprint"), given["fingerprint"]
    if wanted == got:
        return
    name = recorded.get("name_or_path") or "an unnamed model"
    hint = ""
    if any(":" in str(one) for one in (wanted, got)):
        hint = (
            "One of the two is known only as it was quantised, and quantised numbers say nothing "
            "of those before: its files were not found, are quantised themselves, or differ. "
        )
    raise CheckpointError(
        f"{what} was trained on {name} (weights {wanted}), but the base given is "
        f"{given['name_or_path']} (weights {got}). "
        f"{hint}Load the base it names, or {advice} if you know that this one is right."
    )
