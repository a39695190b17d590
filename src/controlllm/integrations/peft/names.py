"""What adapters and their tensors are called, in a model, in PEFT's files and in sidecars.

    model          model.layers.3.controlllm_parts.NAME.expanded.mlp.up_proj.weight
    PEFT's file    base_model.model.model.layers.3.controlllm_parts.expanded.mlp.up_proj.weight
    sidecar        model.layers.3.expanded.mlp.up_proj.weight

The adapter's name is never saved: an adapter may be loaded under any other.
"""

from enum import EnumType

from peft import PeftType

from controlllm.common.errors import CheckpointError

__all__ = [
    "BRANCHES",
    "PARTS",
    "PEFT_PREFIX",
    "PEFT_TYPE",
    "file_name",
    "sidecar_name",
    "without_adapter",
]

PARTS = "controlllm_parts"
"""The attribute of a layer that holds its adapters' parts."""

PEFT_PREFIX = "base_model.model."
"""What PEFT's wrapper puts before the names of the base."""

BRANCHES = ("expanded", "interpolator")
"""What a part consists of."""


def without_adapter(key: str, adapter_name: str) -> str:
    """A tensor's name in a model without the name of its adapter.

    >>> without_adapter("layers.3.controlllm_parts.maths.interpolator.logit", "maths")
    'layers.3.controlllm_parts.interpolator.logit'
    """
    before, middle, after = key.partition(f".{PARTS}.{adapter_name}.")
    return f"{before}.{PARTS}.{after}" if middle else key


def sidecar_name(key: str) -> str:
    """What a sidecar calls a tensor of PEFT's file.

    >>> sidecar_name("base_model.model.lm_head.controlllm_parts.expanded.weight")
    'lm_head.expanded.weight'

    Raises:
        CheckpointError: if the file's tensor is none of this method.
    """
    name = key.removeprefix(PEFT_PREFIX)
    before, middle, after = name.partition(f".{PARTS}.")
    if name == key or not middle:
        raise CheckpointError(f"{key} is no tensor of a Control LLM adapter.")
    return f"{before}.{after}"


def file_name(key: str) -> str:
    """What PEFT's file calls a tensor of a sidecar.

    >>> file_name("lm_head.expanded.weight")
    'base_model.model.lm_head.controlllm_parts.expanded.weight'

    Raises:
        CheckpointError: if it is a tensor of the base, which an adapter cannot hold.
    """
    parts = key.split(".")
    branch = next((i for i, part in enumerate(parts) if part in BRANCHES), None)
    if branch is None:
        raise CheckpointError(f"{key} is a part of the base, which an adapter cannot change.")
    return PEFT_PREFIX + ".".join([*parts[:branch], PARTS, *parts[branch:]])


def _listed(name: str) -> PeftType:
    """Add a member to PEFT's list of types, once.

    `register_peft_method` takes only what is in that list, and PEFT has no way to extend it.
    """
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        EnumType.__setattr__(PeftType, name, member)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
    return PeftType[name]


PEFT_TYPE = _listed("CONTROLLLM")
"""This method in PEFT's list of types."""
