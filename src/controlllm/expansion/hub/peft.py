"""Adapters by PEFT: LoRA, DoRA or OFT on a base, or on the frozen blocks of an expanded model.

```
linear layers of the chosen blocks --> PEFT puts adapters around them, in the model itself
```
The model stays of its class: PEFT's wrapper `PeftModel` is not used. A base with adapters is saved
as PEFT saves it, so `PeftModel.from_pretrained(base, folder)` reads it; adapters of an expanded
model are part of its sidecar. This is the only module below the integrations that imports PEFT.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from controlllm.common.adapters import ADAPTER_NAME, adapter_names, has_adapters, remove_adapters
from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.quiet import require_package
from controlllm.common.tensors import copy_tensors
from controlllm.expansion.files.adapter_config import AdapterConfig
from controlllm.expansion.files.adapter_file import adapter_settings, require_ranks
from controlllm.expansion.hub.expand import decoder_blocks
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM

__all__ = [
    "adapter_tensors",
    "add_adapters",
    "put_adapters",
    "require_peft",
]

_PREFIX = "base_model.model."
"""What PEFT writes before the names of a base's modules."""


def require_peft() -> Any:
    """Import PEFT (ConfigError where it is not installed)."""
    return require_package("peft", "an adapter")


def add_adapters(model: PreTrainedModel, config: AdapterConfig, seed: int = 0) -> None:
    """Put fresh adapters into a model, in place; its outputs do not change yet.

    Of a base only the adapters train then; of an expanded model they train beside what trains
    already.

    Args:
        model: a decoder-only base, or an expanded one, without adapters.
        config: which and where.
        seed: of their first values; the random state of the process is left alone.

    Raises:
        ConfigError: PEFT is not installed, or there are no such layers.
        ModelError: there are adapters already, or the model's blocks cannot be found.
    """
    if has_adapters(model):
        raise ModelError("this model has adapters already; train them further, or merge them.")
    layers = _target_layers(model, config)
    values = _MAKERS[config.type or "lora"](config, layers) | {
        "task_type": "CAUSAL_LM",
        "target_modules": list(layers),
        "base_model_name_or_path": getattr(model.config, "_name_or_path", "") or None,
        "revision": getattr(model.config, "_commit_hash", None),
    }
    with torch.random.fork_rng(devices=[]):  # PEFT makes them on the CPU
        torch.manual_seed(seed)
        _inject(model, values)


def adapter_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters of a model's adapters, by the names that PEFT saves them by (not copies)."""
    own = adapter_names(model)
    return {_saved_name(name): p for name, p in model.named_parameters() if name in own}


def put_adapters(
    model: PreTrainedModel,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    where: str,
    fill: bool = True,
) -> None:
    """Put saved adapters into a model, in place.

    Args:
        model: what they were trained on.
        config: as PEFT writes it (`read_peft_config`).
        tensors: by the names that PEFT saves them by, or others, with which nothing is filled.
        where: what they were read from, for messages.
        fill: whether they get these values; else the caller gives them theirs.

    Raises:
        ConfigError: PEFT is not installed.
        CheckpointError: they do not fit the model, which is then unchanged.
    """
    known = require_peft().PEFT_TYPE_TO_CONFIG_MAPPING
    kind = config.get("peft_type") if isinstance(config, dict) else None
    defaults = vars(known[kind]()) if isinstance(kind, str) and kind in known else {}
    settings = adapter_settings(config, defaults, where)
    require_ranks(settings, (tensor.shape for tensor in tensors.values()), where)
    _inject(model, {**settings, "inference_mode": False})
    if not fill:
        return
    own = adapter_tensors(model)
    try:
        for name in own.keys() & tensors.keys():
            own[name].data = own[name].data.to(tensors[name].dtype)  # may be finer than the base's
        copy_tensors(own, tensors, where)
    except Exception:
        remove_adapters(model)
        raise


def _inject(model: PreTrainedModel, values: dict[str, Any]) -> None:
    """Let PEFT put adapters in; what trained in an expanded model goes on training."""
    peft = require_peft()
    expanded = isinstance(model, ControlLLMForCausalLM)
    trained = [p for p in model.parameters() if p.requires_grad] if expanded else []
    try:
        peft.inject_adapter_in_model(peft.PeftConfig.from_peft_type(**values), model, ADAPTER_NAME)
    except (ValueError, TypeError) as error:
        remove_adapters(model)
        raise ConfigError(f"PEFT cannot put these adapters in: {error}") from error
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _target_layers(model: PreTrainedModel, config: AdapterConfig) -> dict[str, nn.Module]:
    """The layers that get adapters, by their names in the model."""
    names, wanted = {m: name for name, m in model.named_modules()}, config.target_modules
    found: dict[str, nn.Module] = {
        names[module]: module
        for block in _target_blocks(model, config)
        for module in block.modules()
        if isinstance(module, nn.Linear | Conv1D)
        and (wanted is None or any(_ends_with(names[module], part) for part in wanted))
    }
    vain = [w for w in wanted or () if not any(_ends_with(n, w) for n in found)]
    if vain or not found:
        raise ConfigError(
            f"no linear layer of {type(model).__name__} is named like peft.target_modules="
            f"{vain or wanted!r} in these blocks."
        )
    return found


def _target_blocks(model: PreTrainedModel, config: AdapterConfig) -> list[nn.Module]:
    blocks = decoder_blocks(model)
    expanded = set(model.blocks) if isinstance(model, ControlLLMForCausalLM) else set()
    free = [layer for layer in range(len(blocks)) if layer not in expanded]
    chosen = free if config.layers is None else config.layers
    wrong = sorted(set(chosen) - set(free))
    if wrong or not chosen:
        raise ConfigError(
            f"peft.layers={config.layers!r}: adapters go on blocks that are not expanded, which "
            f"are {free}{f'; {wrong} are not among them' if wrong else ''}."
        )
    return [blocks[layer] for layer in chosen]


def _ends_with(name: str, part: str) -> bool:
    """Whether a dotted name ends with these whole parts."""
    return f".{name}".endswith(f".{part}")


def _make_lora(config: AdapterConfig, layers: dict[str, nn.Module]) -> dict[str, Any]:
    kinds = {isinstance(layer, Conv1D) for layer in layers.values()}
    if len(kinds) > 1:
        raise ConfigError("peft.target_modules mixes linear layers and Conv1D; name one kind.")
    return {
        "peft_type": "LORA",
        "r": config.r,
        "lora_alpha": config.alpha or 2 * config.r,
        "lora_dropout": config.dropout,
        "use_dora": config.type == "dora",
        "fan_in_fan_out": kinds == {True},
    }


def _make_oft(config: AdapterConfig, layers: dict[str, nn.Module]) -> dict[str, Any]:
    widths = [getattr(layer, "in_features", 0) for layer in layers.values()]
    for name, width in zip(layers, widths, strict=True):
        if not width or width % config.block_size:
            fits = [n for n in range(1, config.block_size) if math.gcd(*widths) % n == 0]
            hint = f" {fits[-1]} divides all." if min(widths) else ""
            raise ConfigError(
                f"peft.block_size={config.block_size} does not divide the width of {name}'s input "
                f"({width}); choose another, or other peft.target_modules.{hint}"
            )
    return {
        "peft_type": "OFT",
        "r": 0,
        "oft_block_size": config.block_size,
        "module_dropout": config.dropout,
    }


_MAKERS = {"lora": _make_lora, "dora": _make_lora, "oft": _make_oft}


def _saved_name(name: str) -> str:
    """What PEFT saves a parameter as.

    >>> _saved_name("model.layers.0.self_attn.q_proj.lora_A.default.weight")
    'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
    """
    parts = [part for part in name.split(".") if part != ADAPTER_NAME]
    if parts[-2] == "lora_magnitude_vector":  # DoRA's is a module here, a tensor in its files
        parts.pop()
    return _PREFIX + ".".join(parts)
