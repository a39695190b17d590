"""Adapters that PEFT has put into a model, known by their structure: PEFT is not imported.

An adapted layer stands where the base's layer was and holds that layer as `base_layer`; all else
that it holds is the adapter. A model that carries its base inside (an expanded one, one with
adapters) computes that base inside `as_base`.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from typing import Any

from torch import nn

__all__ = [
    "ADAPTER_NAME",
    "BASE_LAYER",
    "adapter_names",
    "as_base",
    "carries_base",
    "has_adapters",
    "merge_adapters",
    "peft_config",
    "remove_adapters",
    "switch_adapters",
    "without_adapters",
]

ADAPTER_NAME = "default"
"""What PEFT calls the only adapter of a model, in the names of its parameters."""
BASE_LAYER = "base_layer"
"""What PEFT calls the layer that an adapter was put around."""


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The adapted layers by name."""
    for name, module in model.named_modules():
        if BASE_LAYER in module._modules and hasattr(module, "_disable_adapters"):
            yield name, module


def has_adapters(model: object) -> bool:
    """Whether PEFT has put an adapter into a model."""
    return isinstance(model, nn.Module) and any(True for _ in _adapted_layers(model))


def adapter_names(model: nn.Module) -> set[str]:
    """The names of all parameters that are an adapter's, not the base's."""
    names = set()
    for layer, module in _adapted_layers(model):
        for name, _ in module.named_parameters():
            if not name.startswith(f"{BASE_LAYER}."):
                names.add(f"{layer}.{name}")
    return names


def switch_adapters(model: nn.Module, on: bool) -> None:
    """Let adapters take part in forward passes, or not."""
    # PEFT's own `enable_adapters` also changes what requires gradients, which a measurement must
    # not, least of all where parameters lie in parts on several processes.
    for _, layer in _adapted_layers(model):
        layer._disable_adapters = not on


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Inside, adapted layers compute what the base's layers would."""
    before = [(layer, layer._disable_adapters) for _, layer in _adapted_layers(model)]
    switch_adapters(model, on=False)
    try:
        yield
    finally:
        for layer, disabled in before:
            layer._disable_adapters = disabled


def carries_base(model: object) -> bool:
    """Whether a model can compute its base by itself."""
    return hasattr(model, "disable_expansion") or has_adapters(model)


def as_base(model: Any) -> AbstractContextManager[Any]:
    """Inside, a model that carries its base computes exactly that; any other is as it is."""
    if hasattr(model, "disable_expansion"):  # which switches adapters off, too
        switched_off: AbstractContextManager[Any] = model.disable_expansion()
        return switched_off
    return without_adapters(model)


def merge_adapters(model: nn.Module) -> None:
    """Add what adapters have learned to the weights that they were put around, in place."""
    for _, layer in list(_adapted_layers(model)):
        layer.merge()
    remove_adapters(model)


def remove_adapters(model: nn.Module) -> None:
    """Put the base's layers back where adapted ones are."""
    for name, layer in list(_adapted_layers(model)):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base_layer)
    vars(model).pop("peft_config", None)


def peft_config(model: nn.Module) -> dict[str, Any]:
    """The config of a model's adapters as PEFT writes it, in plain JSON."""
    configs: Any = vars(model)["peft_config"]
    values: dict[str, Any] = configs[ADAPTER_NAME].to_dict()
    plain = {key: _plain(value) for key, value in values.items()}
    return json.loads(json.dumps(plain)) | {"inference_mode": True}


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
