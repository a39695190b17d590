"""What lies in a folder: the kinds of saved models and the files by which each is known.

| kind | what is saved | files |
|---|---|---|
| `control` | an expanded model's trained tensors, apart from its base | a sidecar |
| `adapters` | the adapters of a base, apart from it | as PEFT writes them, and `base.json` |
| `part` | those tensors of a model that train, apart from its base | `part.safetensors`, ... |
| `full` | all tensors of a model | a Hugging Face model |

A new kind is one more row here, and one in `kinds`, which says how a model is saved and put
together. Nothing here needs torch, so that looking into a folder is quick.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict

from controlllm.common.errors import CheckpointError
from controlllm.common.storage.schema import read_record
from controlllm.expansion.files.adapter_file import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    read_peft_config,
)
from controlllm.expansion.files.records import (
    SIDECAR_CONFIG,
    SIDECAR_WEIGHTS,
    BaseRecord,
    read_sidecar_config,
)

__all__ = [
    "BASE_RECORD",
    "KINDS",
    "OPTIMIZER_PREFIX",
    "PART_FORMAT",
    "SavedKind",
    "base_of_adapters",
    "base_of_part",
    "kind_in",
]

BASE_RECORD = "base.json"
"""Beside an adapter: which base it was trained on, more than PEFT notes of it."""
OPTIMIZER_PREFIX = "optimizer/"
"""Begins the names of the optimizer's tensors, beside those of the model."""
PART_FORMAT = 1


class _PartFile(TypedDict):
    """`part_config.json`."""

    format: Required[int]
    base: Required[BaseRecord]


@dataclass(frozen=True)
class SavedKind:
    """One kind of saved model.

    Attributes:
        name: as checkpoints note it (`TrainingState.model["method"]`).
        weights: the file of its tensors.
        config: the file of its config, by which a folder of this kind is known.
        base_of: what a folder notes of the base; None for a kind that is whole by itself.
    """

    name: str
    weights: str
    config: str
    base_of: Callable[[Path], dict[str, Any]] | None = None


def kind_in(folder: Path) -> SavedKind | None:
    """What lies in a folder; None if it is no model."""
    return next((kind for kind in KINDS.values() if (folder / kind.config).is_file()), None)


def base_of_adapters(folder: Path) -> dict[str, Any]:
    """What an adapter records of its base, in both of its JSON files (CheckpointError)."""
    values = read_peft_config(folder)
    base = {"name_or_path": values.get("base_model_name_or_path")}
    base["revision"] = values.get("revision")
    record = folder / BASE_RECORD
    return base | (dict(read_record(record, BaseRecord)) if record.is_file() else {})


def base_of_part(folder: Path) -> dict[str, Any]:
    """What `part_config.json` records of the base (CheckpointError)."""
    path = folder / KINDS["part"].config
    values = read_record(path, _PartFile)
    if values["format"] > PART_FORMAT:
        raise CheckpointError(
            f"{path} has format {values['format']}; this version reads {PART_FORMAT}: update "
            "controlllm."
        )
    return dict(values["base"])


_ROWS = (
    SavedKind(
        "control",
        SIDECAR_WEIGHTS,
        SIDECAR_CONFIG,
        lambda folder: read_sidecar_config(folder)["base"],
    ),
    SavedKind("adapters", ADAPTER_WEIGHTS, ADAPTER_CONFIG, base_of_adapters),
    SavedKind("part", "part.safetensors", "part_config.json", base_of_part),
    SavedKind("full", "model.safetensors", "config.json"),
)

KINDS = {kind.name: kind for kind in _ROWS}
"""All kinds by name; the first whose config lies in a folder counts."""
