"""The kinds of models that are saved, and what each is saved as: one table, read from its top.

| kind | what is saved | files |
|---|---|---|
| `control` | an expanded model's trained tensors, apart from its base | a sidecar |
| `adapters` | the adapters of a base, apart from it | as PEFT writes them, and `base.json` |
| `part` | those tensors of a model that train, apart from its base | `part.safetensors`, ... |
| `full` | all tensors of a model | a Hugging Face model |

`checkpoint` says what is saved during training, `locate` what lies in a folder, `loading` how it is
put on its base: all of them by this table. A new kind is one more row.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict

from torch import Tensor
from transformers import PreTrainedModel

from controlllm.common.adapters import has_adapters, peft_config
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.checksums import verify_checksums
from controlllm.common.storage.schema import read_record
from controlllm.common.storage.tensor_files import read_tensors, require_numbers
from controlllm.common.tensors import copy_tensors
from controlllm.expansion import load_sidecar
from controlllm.expansion.files.base_record import architecture_of, base_record, check_base
from controlllm.expansion.files.records import BaseRecord
from controlllm.expansion.files.sidecar import (
    SIDECAR_CONFIG,
    SIDECAR_WEIGHTS,
    adapters_config,
    base_fingerprint,
    read_sidecar_config,
    sidecar_config,
    sidecar_tensors,
)
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.hub.peft import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_tensors,
    put_adapters,
    read_peft_config,
)

__all__ = [
    "BASE_RECORD",
    "KINDS",
    "SavedKind",
    "describe_model",
    "kind_in",
    "kind_of",
    "restore_tensors",
    "trained_tensors",
]

BASE_RECORD = "base.json"
"""Beside an adapter: which base it was trained on, more than PEFT notes of it."""
PART_WEIGHTS, PART_CONFIG = "part.safetensors", "part_config.json"
_FORMAT = 1


class _PartFile(TypedDict):
    """`part_config.json`."""

    format: Required[int]
    base: Required[BaseRecord]


@dataclass(frozen=True)
class SavedKind:
    """One kind.

    Attributes:
        name: as checkpoints note it (`TrainingState.model["method"]`).
        weights: the file of its tensors.
        config: the file of its config, by which a folder of this kind is known.
        holds: whether a model is of this kind (and of none before it in the table).
        tensors: what is saved of such a model, by name; its own tensors, not copies.
        describe: the config, and what else is noted; for `TrainingState.model`.
        base_of: what a folder notes of the base; None for kinds that are whole by themselves.
        put_on: makes the model of (base, folder, tensors, whether to check the base).
    """

    name: str
    weights: str
    config: str
    holds: Callable[[PreTrainedModel], bool]
    tensors: Callable[[Any], dict[str, Tensor]]
    describe: Callable[[Any], dict[str, Any]]
    base_of: Callable[[Path], dict[str, Any]] | None = None
    put_on: (
        Callable[[PreTrainedModel, Path, dict[str, Tensor] | None, bool], PreTrainedModel] | None
    ) = None


def kind_of(model: PreTrainedModel) -> SavedKind:
    """What a model is saved as."""
    return next(kind for kind in KINDS.values() if kind.holds(model))


def kind_in(folder: Path) -> SavedKind | None:
    """What lies in a folder; None if it is no model."""
    return next((kind for kind in KINDS.values() if (folder / kind.config).is_file()), None)


def _describe_expanded(model: ControlLLMForCausalLM) -> dict[str, Any]:
    base_fingerprint(model)
    return {"config": sidecar_config(model.config, adapters_config(model))}


def _base_of_adapters(folder: Path) -> dict[str, Any]:
    values = read_peft_config(folder)
    base = {"name_or_path": values.get("base_model_name_or_path")}
    base["revision"] = values.get("revision")
    record = folder / BASE_RECORD
    return base | (dict(read_record(record, BaseRecord)) if record.is_file() else {})


def _put_adapters(
    base: PreTrainedModel, folder: Path, tensors: dict[str, Tensor] | None, check: bool
) -> PreTrainedModel:
    recorded = _base_of_adapters(folder)
    if check and recorded.get("fingerprint"):  # PEFT itself notes none
        check_base(base, recorded, f"The adapter {folder}")
    saved = _read(folder, ADAPTER_WEIGHTS) if tensors is None else tensors
    put_adapters(base, read_peft_config(folder), saved, str(folder))
    return base


def _is_partly_frozen(model: PreTrainedModel) -> bool:
    trains = {parameter.requires_grad for parameter in model.parameters()}
    return trains == {True, False}


def _part_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _describe_part(model: PreTrainedModel) -> dict[str, Any]:
    dtype = next(iter(_part_tensors(model).values())).dtype  # finer than the base's, may be
    base = base_record(model) | {"dtype": str(dtype).removeprefix("torch.")}
    return {"config": {"format": _FORMAT, "base": base}}


def _base_of_part(folder: Path) -> dict[str, Any]:
    path = folder / PART_CONFIG
    values = read_record(path, _PartFile)
    if values["format"] > _FORMAT:
        raise CheckpointError(
            f"{path} has format {values['format']}; this version reads {_FORMAT}: update "
            "controlllm."
        )
    return dict(values["base"])


def _put_part(
    base: PreTrainedModel, folder: Path, tensors: dict[str, Tensor] | None, check: bool
) -> PreTrainedModel:
    if check:
        check_base(base, _base_of_part(folder), f"The checkpoint {folder}")
    saved = _read(folder, PART_WEIGHTS) if tensors is None else tensors
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


_ROWS = (
    SavedKind(
        "control",
        SIDECAR_WEIGHTS,
        SIDECAR_CONFIG,
        holds=lambda model: isinstance(model, ControlLLMForCausalLM),
        tensors=sidecar_tensors,
        describe=_describe_expanded,
        base_of=lambda folder: read_sidecar_config(folder)["base"],
        put_on=lambda base, folder, tensors, check: load_sidecar(
            base, folder, check_base=check, tensors=tensors
        ),
    ),
    SavedKind(
        "adapters",
        ADAPTER_WEIGHTS,
        ADAPTER_CONFIG,
        holds=has_adapters,
        tensors=adapter_tensors,
        describe=lambda model: {"config": peft_config(model), "base": base_record(model)},
        base_of=_base_of_adapters,
        put_on=_put_adapters,
    ),
    SavedKind(
        "part",
        PART_WEIGHTS,
        PART_CONFIG,
        holds=_is_partly_frozen,
        tensors=_part_tensors,
        describe=_describe_part,
        base_of=_base_of_part,
        put_on=_put_part,
    ),
    SavedKind(
        "full",
        "model.safetensors",
        "config.json",
        holds=lambda model: True,
        tensors=lambda model: dict(model.named_parameters()),
        describe=_describe_full,
    ),
)

KINDS = {kind.name: kind for kind in _ROWS}
"""All kinds by name; the first that fits counts."""


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
