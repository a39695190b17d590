"""The sidecar: all trained tensors of an expanded model, saved apart from its base.

A folder with `sidecar.safetensors`, `sidecar_config.json` (how it was expanded, which base it was,
the dial, PEFT's config of adapters), a model card and `checksums.json`. Names in it are the base's
own, with `.expanded.` and `.interpolator.` where the trained parts are.

The weights' file notes a digest of the settings that it was written with, so that settings edited
by hand are refused. It is no signature.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from controlllm.common.adapters import has_adapters, switch_adapters
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.checksums import verify_checksums, write_checksums
from controlllm.common.storage.files import (
    atomic_folder,
    read_json,
    require_empty,
    save_tensors,
    write_json,
    write_text,
)
from controlllm.common.storage.schema import check_record
from controlllm.common.storage.tensor_files import read_header, read_tensors, require_numbers
from controlllm.expansion.files.peft import peft_config, put_adapters
from controlllm.expansion.hub.card import model_card
from controlllm.expansion.hub.expand import expand
from controlllm.expansion.hub.hf_config import ControlLLMConfig
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.identity.base_record import check_base as check_recorded
from controlllm.expansion.identity.fingerprint import fingerprint
from controlllm.expansion.identity.records import SidecarFile, function_digest
from controlllm.expansion.method.expansion_config import ExpansionConfig

__all__ = [
    "SIDECAR_CONFIG",
    "SIDECAR_WEIGHTS",
    "adapters_config",
    "base_fingerprint",
    "copy_tensors",
    "load_sidecar",
    "read_sidecar_config",
    "read_sidecar_tensors",
    "require_same",
    "save_sidecar",
    "sidecar_metadata",
    "sidecar_tensors",
    "write_sidecar",
]

SIDECAR_CONFIG = "sidecar_config.json"
SIDECAR_WEIGHTS = "sidecar.safetensors"
FORMAT = 2
_DIGEST = "settings_sha256"


def sidecar_tensors(model: ControlLLMForCausalLM) -> dict[str, Tensor]:
    """What a sidecar holds: expanded parts, interpolators, and parts of the base that train.

    The tensors are the model's own, not copies; tied ones come once.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if parameter.requires_grad or "expanded" in parts or "interpolator" in parts:
            tensors[name.removeprefix("base.")] = parameter
    return tensors


def base_fingerprint(model: ControlLLMForCausalLM) -> str:
    """The fingerprint of the base that the model was expanded from, computed once."""
    known = model.config.base.get("fingerprint")
    if known is None:
        known = model.config.base["fingerprint"] = fingerprint(model)
    return known


def save_sidecar(
    model: ControlLLMForCausalLM,
    folder: str | os.PathLike[str],
    overwrite: bool = False,
    tensors: dict[str, Tensor] | None = None,
) -> None:
    """Write trained tensors, config and model card; the folder appears whole or not at all.

    Args:
        model: the expanded model.
        folder: where to; absent or empty, or an older sidecar with `overwrite`.
        overwrite: whether a folder that holds an older sidecar is replaced.
        tensors: the trained tensors by `sidecar_tensors`' names, if they are gathered already.

    Raises:
        CheckpointError: if the folder holds anything else, or cannot be written.
    """
    base_fingerprint(model)
    tensors = sidecar_tensors(model) if tensors is None else tensors
    write_sidecar(folder, tensors, model.config, overwrite, adapters_config(model))


def write_sidecar(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    config: ControlLLMConfig,
    overwrite: bool = False,
    peft: Mapping[str, Any] | None = None,
) -> None:
    """Write trained tensors that may come from anywhere; see `save_sidecar`.

    Args:
        folder: where to.
        tensors: by the names of `sidecar_tensors`.
        config: its expansion and its base are written.
        overwrite: whether a folder that holds an older sidecar is replaced.
        peft: PEFT's config of the adapters that are among the tensors.

    Raises:
        CheckpointError: if the folder holds anything else, or cannot be written.
    """
    if not (Path(folder) / SIDECAR_CONFIG).is_file():
        require_empty(Path(folder))  # whatever lies there is not ours to replace
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_folder(Path(folder), overwrite=overwrite) as temporary:
        values = sidecar_config(config, peft)
        save_tensors(temporary / SIDECAR_WEIGHTS, ready, sidecar_metadata(values))
        write_json(temporary / SIDECAR_CONFIG, values)
        write_text(temporary / "README.md", model_card(config, "sidecar"))
        write_checksums(temporary)


def adapters_config(model: ControlLLMForCausalLM) -> dict[str, Any] | None:
    """PEFT's config of the adapters on top of an expanded model; None without any."""
    return peft_config(model) if has_adapters(model) else None


def sidecar_config(
    config: ControlLLMConfig, peft: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the sidecar's config says: how it was expanded, its base, and PEFT's config if any."""
    values = {"format": FORMAT, "expansion": config.expansion, "base": config.base}
    return values | ({"peft": dict(peft)} if peft is not None else {})


def sidecar_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """What stands in the weights' file beside the tensors, for a sidecar's config.

    One entry: the order of several is chance, and equal sidecars would be unequal files.
    """
    return {_DIGEST: function_digest(values)}


def read_sidecar_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a sidecar's config, and compare it with what its weights were written with.

    Raises:
        CheckpointError: if it is missing, broken, edited, or written by another version.
    """
    path, weights = Path(folder) / SIDECAR_CONFIG, Path(folder) / SIDECAR_WEIGHTS
    values = read_json(path)
    found = values.get("format") if isinstance(values, dict) else None
    if isinstance(found, int) and found != FORMAT:
        advice = "update controlllm" if found > FORMAT else "make it anew"
        raise CheckpointError(f"{path} has format {found}; this version reads {FORMAT}: {advice}.")
    checked = check_record(values, SidecarFile, path)
    if weights.is_file() and read_header(weights).metadata.get(_DIGEST) != function_digest(values):
        raise CheckpointError(
            f"{path}: the settings are not those that {SIDECAR_WEIGHTS} was written with, and make "
            "another model of it. Export it again; its dial is changed by `controlllm calibrate`."
        )
    return {**checked, "expansion": checked["expansion"].to_dict()}


def load_sidecar(
    base: PreTrainedModel,
    folder: str | os.PathLike[str],
    check_base: bool = True,
    tensors: dict[str, Tensor] | None = None,
) -> ControlLLMForCausalLM:
    """Expand `base` and put a sidecar's trained tensors into it.

    Args:
        base: the model that the sidecar was trained on; taken over, as by `expand`.
        folder: the sidecar.
        check_base: refuse a base with another fingerprint; that of a quantised base is that of the
            files it was loaded from. Switch it off for a renamed base, or a quantised one without
            such files, that you know to be the right one.
        tensors: the sidecar's tensors, if they are read already.

    Returns:
        The expanded model, at the dial the sidecar was saved with.

    Raises:
        CheckpointError: if the base is another one, or tensors are missing, left over or of another
        shape; the base
            is then unchanged.
    """
    values = read_sidecar_config(folder)
    if tensors is None:
        verify_checksums(Path(folder), ours=True)
    saved = read_sidecar_tensors(folder) if tensors is None else tensors
    require_numbers(saved, str(folder))
    if check_base:
        check_recorded(base, values["base"], f"The sidecar {folder}")
    grown = values["base"].get("grown_vocab_size")
    if grown and not any(grown in tensor.shape for tensor in saved.values()):
        raise CheckpointError(
            f"{Path(folder) / SIDECAR_CONFIG}: base.grown_vocab_size={grown}, but no tensor has so "
            "many rows."
        )
    model = expand(base, ExpansionConfig.from_dict(values["expansion"]))
    try:
        if grown:
            model.resize_token_embeddings(grown)
        if "peft" in values:
            put_adapters(model, values["peft"], saved, str(folder), fill=False)
            switch_adapters(model, on=model.expansion.dial != 0)
        copy_tensors(sidecar_tensors(model), saved, str(folder))
    except Exception:
        model.unload()
        raise
    model.config.base |= values["base"]
    return model


def copy_tensors(own: dict[str, Tensor], tensors: dict[str, Tensor], where: str) -> None:
    """Copy saved tensors into a model's own, in place.

    Args:
        own: the model's tensors by name.
        tensors: the saved ones.
        where: what they were read from, for messages.

    Raises:
        CheckpointError: if names or shapes differ; nothing is copied then.
    """
    require_same(_shapes(own), _shapes(tensors), where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def require_same(
    own: Mapping[str, Sequence[int]], saved: Mapping[str, Sequence[int]], where: str
) -> None:
    """Check that saved tensors are those of a model.

    Args:
        own: the model's shapes by name.
        saved: those of the saved tensors.
        where: what they were read from, for messages.

    Raises:
        CheckpointError: if names or shapes differ.
    """
    missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(
            f"{where} does not fit this model: missing {_few(missing)}, left over {_few(extra)}; "
            "set the model up as it was when it was saved."
        )
    for name, shape in own.items():
        if tuple(shape) != tuple(saved[name]):
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(saved[name])}, the model {tuple(shape)}; set "
                "the model up as it was when it was saved."
            )


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _few(names: list[str]) -> str:
    """The first names of a list, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more or "none"


def read_sidecar_tensors(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a sidecar's tensors, onto the CPU.

    Raises:
        CheckpointError: if they are missing or broken.
    """
    return read_tensors(Path(folder) / SIDECAR_WEIGHTS)
