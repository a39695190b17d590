"""The sidecar: all trained tensors of an expanded model, saved apart from its base.

A folder with `sidecar.safetensors`, `sidecar_config.json` (how it was expanded, which base it was,
the dial, PEFT's config of adapters), a model card and `checksums.json`. Names in it are the base's
own, with `.expanded.` and `.interpolator.` where the trained parts are. Matrices may be in few bits
(`packed`).

The weights' file notes a digest of the settings that it was written with, so that settings edited
by hand are refused. It is no signature.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from controlllm.common.adapters import has_adapters, peft_config
from controlllm.common.errors import ModelError
from controlllm.common.storage.checksums import write_checksums
from controlllm.common.storage.files import (
    atomic_folder,
    require_empty,
    save_tensors,
    write_json,
    write_text,
)
from controlllm.common.storage.tensor_files import read_tensors
from controlllm.expansion.files.card import model_card
from controlllm.expansion.files.fingerprint import fingerprint
from controlllm.expansion.files.packed import check_bits, pack_tensors
from controlllm.expansion.files.records import (
    PACKED_FORMAT,
    SETTINGS_DIGEST,
    SIDECAR_CONFIG,
    SIDECAR_FORMAT,
    SIDECAR_WEIGHTS,
    PackedRecord,
    function_digest,
)
from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.expansion.surgery.sidecars import name_alone

__all__ = [
    "adapters_config",
    "base_fingerprint",
    "read_sidecar_tensors",
    "save_sidecar",
    "sidecar_metadata",
    "sidecar_tensors",
    "write_sidecar",
]


def sidecar_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a sidecar holds: expanded parts, interpolators, and parts of the base that train.

    The tensors are the model's own, not copies; tied ones come once. Of a model with earlier
    sidecars they are those of the newest, by the names that they have where it stands alone.

    Raises:
        ModelError: the copies are held in 8 bits.
    """
    tensors: dict[str, Tensor] = {}
    expansion: Any = model._expansion
    own = {id(p) for part in expansion.parts() for p in part.parameters()}
    for name, parameter in model.named_parameters():
        parts = {*name.split(".")} & {"expanded", "interpolator"}
        if parameter.requires_grad or (parts and id(parameter) in own):
            if not parameter.is_floating_point():
                raise ModelError(
                    f"The copies of this model are held in 8 bits ({name}), which are not saved: "
                    "load it without quantize_copies."
                )
            tensors[name_alone(name.removeprefix("base."))] = parameter
    return tensors


def base_fingerprint(model: PreTrainedModel) -> str:
    """The fingerprint of the base that the model was expanded from, computed once."""
    known = model.config.base.get("fingerprint")
    if known is None:
        known = model.config.base["fingerprint"] = fingerprint(model)
    return known


def save_sidecar(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    overwrite: bool = False,
    tensors: dict[str, Tensor] | None = None,
    bits: int | None = None,
) -> None:
    """Write trained tensors, config and model card; the folder appears whole or not at all.

    Args:
        model: the expanded model.
        folder: where to; absent or empty, or an older sidecar with `overwrite`.
        overwrite: whether a folder that holds an older sidecar is replaced.
        tensors: the trained tensors by `sidecar_tensors`' names, if they are gathered already.
        bits: 1, 2 or 4 writes each matrix as its difference from the frozen one that it began as,
            in so many bits a number (`packed`); None = whole.

    Raises:
        ConfigError: for another number of bits.
        CheckpointError: if the folder holds anything else, or cannot be written.
        ModelError: with `bits`, if the base is quantised, or there is no such matrix.
    """
    check_bits(bits)
    base_fingerprint(model)
    config: Any = model.config
    ready: Mapping[str, Tensor] = sidecar_tensors(model) if tensors is None else tensors
    record = None
    if bits is not None:
        packed = pack_tensors(model, ready, bits)
        ready, record = packed.tensors, packed.record
    write_sidecar(folder, ready, config, overwrite, adapters_config(model), record)


def write_sidecar(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    config: ControlLLMConfig,
    overwrite: bool = False,
    peft: Mapping[str, Any] | None = None,
    packed: PackedRecord | None = None,
) -> None:
    """Write trained tensors that may come from anywhere; see `save_sidecar`."""
    if not (Path(folder) / SIDECAR_CONFIG).is_file():
        require_empty(Path(folder))  # whatever lies there is not ours to replace
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_folder(Path(folder), overwrite=overwrite) as temporary:
        values = sidecar_config(config, peft, packed)
        save_tensors(temporary / SIDECAR_WEIGHTS, ready, sidecar_metadata(values))
        write_json(temporary / SIDECAR_CONFIG, values)
        more = {"bits of a difference from the base": packed["bits"]} if packed is not None else {}
        write_text(temporary / "README.md", model_card(config, "sidecar", more))
        write_checksums(temporary)


def adapters_config(model: PreTrainedModel) -> dict[str, Any] | None:
    """PEFT's config of the adapters on top of an expanded model; None without any."""
    return peft_config(model) if has_adapters(model) else None


def sidecar_config(
    config: ControlLLMConfig,
    peft: Mapping[str, Any] | None = None,
    packed: PackedRecord | None = None,
) -> dict[str, Any]:
    """What the sidecar's config says: expansion, base, stages before, PEFT's config, few bits."""
    values = {"format": SIDECAR_FORMAT, "expansion": config.expansion, "base": config.base}
    values |= {"parents": config.parents} if config.parents else {}
    values |= {"peft": dict(peft)} if peft is not None else {}
    return values | ({"format": PACKED_FORMAT, "packed": packed} if packed is not None else {})


def sidecar_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """What stands in the weights' file beside the tensors, for a sidecar's config.

    One entry: the order of several is chance, and equal sidecars would be unequal files.
    """
    return {SETTINGS_DIGEST: function_digest(values)}


def read_sidecar_tensors(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a sidecar's tensors, onto the CPU (CheckpointError: missing or broken)."""
    return read_tensors(Path(folder) / SIDECAR_WEIGHTS)
