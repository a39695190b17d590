"""How a model of each kind (`saved.KINDS`) is saved, and put together again: one row a kind."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from controlllm.checkpoint.training.saved import KINDS, PART_FORMAT, base_of_adapters, base_of_part
from controlllm.common.adapters import has_adapters, peft_config
from controlllm.common.storage.checksums import verify_checksums
from controlllm.common.storage.tensor_files import read_tensors, require_numbers
from controlllm.common.tensors import copy_tensors
from controlllm.expansion import load_sidecar
from controlllm.expansion.files.adapter_file import ADAPTER_WEIGHTS, read_peft_config
from controlllm.expansion.files.base_record import architecture_of, base_record, check_base
from controlllm.expansion.files.sidecar import (
    adapters_config,
    base_fingerprint,
    sidecar_config,
    sidecar_tensors,
)
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.hub.peft import adapter_tensors, put_adapters

__all__ = ["HANDLERS", "Handler", "describe_model", "trained_tensors"]


@dataclass(frozen=True)
class Handler:
    """How models of one kind are recognised, saved and restored.

    Attributes:
        holds: whether a model is of this kind (and of none before it in the table).
        tensors: what is saved of such a model, by name; its own tensors, not copies.
        describe: the config, and what else is noted; for `TrainingState.model`.
        put_on: makes the model of (base, folder, tensors, whether to check the base); None for a
            kind that is whole by itself.
    """

    holds: Callable[[PreTrainedModel], bool]
    tensors: Callable[[Any], dict[str, Tensor]]
    describe: Callable[[Any], dict[str, Any]]
    put_on: (
        Callable[[PreTrainedModel, Path, dict[str, Tensor] | None, bool], PreTrainedModel] | None
    ) = None


def _describe_expanded(model: ControlLLMForCausalLM) -> dict[str, Any]:
    base_fingerprint(model)
    return {"config": sidecar_config(model.config, adapters_config(model))}


def _put_adapters(
    base: PreTrainedModel, folder: Path, tensors: dict[str, Tensor] | None, check: bool
) -> PreTrainedModel:
    recorded = base_of_adapters(folder)
    if check and recorded.get("fingerprint"):  # PEFT itself notes none
        check_base(base, recorded, f"The adapter {folder}")
    saved = _read(folder, ADAPTER_WEIGHTS) if tensors is None else tensors
    put_adapters(base, read_peft_config(folder), saved, str(folder))
    return base


def _part_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _describe_part(model: PreTrainedModel) -> dict[str, Any]:
    dtype = next(iter(_part_tensors(model).values())).dtype  # finer than the base's, may be
    base = base_record(model) | {"dtype": str(dtype).removeprefix("torch.")}
    return {"config": {"format": PART_FORMAT, "base": base}}


def _put_part(
    base: PreTrainedModel, folder: Path, tensors: dict[str, Tensor] | None, check: bool
) -> PreTrainedModel:
    if check:
        check_base(base, base_of_part(folder), f"The checkpoint {folder}")
    saved = _read(folder, KINDS["part"].weights) if tensors is None else tensors
    own = dict(base.named_parameters())
    copy_tensors({name: own[name] for name in own.keys() & saved.keys()}, saved, str(folder))
    return base


def _describe_full(model: PreTrainedModel) -> dict[str, Any]:
    config = json.loads(model.config.to_json_string())
    config |= {
        "architectures": [architecture_of(model)],
        "dtype": str(model.dtype).removeprefix("torch."),
        "_name_or_path": model.config.name_or_path,
    }
    return {"config": config}


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a folder, once they are known to be whole, and numbers."""
    verify_checksums(folder)
    tensors = read_tensors(folder / name)
    require_numbers(tensors, str(folder))
    return tensors


HANDLERS = {
    "control": Handler(
        holds=lambda model: isinstance(model, ControlLLMForCausalLM),
        tensors=sidecar_tensors,
        describe=_describe_expanded,
        put_on=lambda base, folder, tensors, check: load_sidecar(
            base, folder, check_base=check, tensors=tensors
        ),
    ),
    "adapters": Handler(
        holds=has_adapters,
        tensors=adapter_tensors,
        describe=lambda model: {"config": peft_config(model), "base": base_record(model)},
        put_on=_put_adapters,
    ),
    "part": Handler(
        holds=lambda model: {p.requires_grad for p in model.parameters()} == {True, False},
        tensors=_part_tensors,
        describe=_describe_part,
        put_on=_put_part,
    ),
    "full": Handler(
        holds=lambda model: True,
        tensors=lambda model: dict(model.named_parameters()),
        describe=_describe_full,
    ),
}
"""By the names of `KINDS`; the first that holds a model counts."""


def _kind_of(model: PreTrainedModel) -> str:
    """What a model is saved as."""
    return next(name for name, handler in HANDLERS.items() if handler.holds(model))


def trained_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model that a checkpoint saves, by name (its own, not copies).

    Of an expanded model these are the tensors of its sidecar, of one with adapters those, of any
    other all parameters that train (`kinds`).
    """
    return HANDLERS[_kind_of(model)].tensors(model)


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """What is needed to build the model again around its trained tensors, as plain JSON.

    Which base it is is noted when this is first called: do so before anything trains. Collective
    where the model lies in parts.

    Returns:
        `method` (the name of its row in `kinds`), `config` (the sidecar's, PEFT's, the model's own,
        ...), and for adapters `base`.
    """
    kind = _kind_of(model)
    return {"method": kind, **HANDLERS[kind].describe(model)}
