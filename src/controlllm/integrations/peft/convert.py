"""A sidecar's folder to an adapter's folder of PEFT and back: exactly, without the base."""

import os
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from controlllm.common.errors import CheckpointError
from controlllm.common.storage.checksums import verify_checksums, write_checksums
from controlllm.common.storage.files import atomic_folder, read_json, require_empty, save_tensors
from controlllm.common.storage.schema import check_record
from controlllm.common.storage.tensor_files import read_tensors, require_numbers
from controlllm.expansion.files.packed import require_whole
from controlllm.expansion.files.records import BaseRecord, read_sidecar_config
from controlllm.expansion.files.sidecar import read_sidecar_tensors, write_sidecar
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.integrations.peft.config import ControlLLMPeftConfig
from controlllm.integrations.peft.names import file_name, sidecar_name

__all__ = ["adapter_to_sidecar", "sidecar_to_adapter"]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def sidecar_to_adapter(
    sidecar: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    base_model_name_or_path: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write an adapter's folder that PEFT opens, with the tensors of a sidecar.

    Args:
        sidecar: the sidecar's folder.
        adapter: where to; absent or empty, or an older adapter with `overwrite`.
        base_model_name_or_path: what PEFT is to load as the base where it is not given one; None =
            the name that the sidecar notes.
        overwrite: whether a folder that holds an older adapter is replaced.

    Raises:
        CheckpointError: if the sidecar is broken, or holds what an adapter cannot (parts of the
            base that train in place, added tokens, adapters on top).
    """
    values = read_sidecar_config(sidecar)
    require_whole(values, sidecar)
    tensors = read_sidecar_tensors(sidecar)
    expansion, base = values["expansion"], values["base"]
    if base.get("grown_vocab_size"):
        raise CheckpointError(
            f"{sidecar} has added tokens (a vocabulary of {base['grown_vocab_size']}), which the "
            "PEFT form cannot hold; load it by load_sidecar() instead."
        )
    if "peft" in values:
        raise CheckpointError(
            f"{sidecar} holds adapters on top of the expansion, which are no part of it as an "
            "adapter; load it by load_sidecar() instead."
        )
    named = {file_name(key): tensor for key, tensor in _untied(tensors, sidecar).items()}
    config = ControlLLMPeftConfig(
        **expansion,
        base=base,
        base_model_name_or_path=base_model_name_or_path or base.get("name_or_path") or None,
        revision=base.get("revision"),
        inference_mode=True,
    )
    if not (Path(adapter) / ADAPTER_CONFIG).is_file():
        require_empty(Path(adapter))
    with atomic_folder(Path(adapter), overwrite=overwrite) as temporary:
        save_tensors(temporary / ADAPTER_WEIGHTS, named, {"format": "pt"})
        config.save_pretrained(temporary)
        write_checksums(temporary)


def adapter_to_sidecar(
    adapter: str | os.PathLike[str], sidecar: str | os.PathLike[str], overwrite: bool = False
) -> None:
    """Write a sidecar's folder with the tensors of an adapter that PEFT has saved.

    Args:
        adapter: the adapter's folder (of a named one: the folder inside PEFT's).
        sidecar: where to; absent or empty, or an older sidecar with `overwrite`.
        overwrite: whether a folder that holds an older sidecar is replaced.

    Raises:
        CheckpointError: if the adapter is missing or broken, or is of another method.
    """
    path = Path(adapter) / ADAPTER_CONFIG
    values = read_json(path)
    if not isinstance(values, dict) or values.get("peft_type") != "CONTROLLLM":
        raise CheckpointError(f"{path} is not of a Control LLM adapter; it cannot be a sidecar.")
    if values.get("base") is None:
        raise CheckpointError(f"{path} does not say which base it belongs to (base).")
    names = {field.name for field in fields(ExpansionConfig)}
    check_record({k: v for k, v in values.items() if k in names}, ExpansionConfig, path)
    check_record(values["base"], BaseRecord, path)
    config = ControlLLMPeftConfig(**values)
    verify_checksums(adapter)
    saved = read_tensors(Path(adapter) / ADAPTER_WEIGHTS)
    require_numbers(saved, str(adapter))
    tensors = {sidecar_name(key): tensor for key, tensor in saved.items()}
    write_sidecar(sidecar, _tied_once(tensors), config.card_config(), overwrite)


def _tables(tensors: dict[str, Tensor]) -> list[str]:
    """The names of ends whose copies have a table (W, D): embedding and head."""
    ending = ".expanded.weight"
    return [
        key.removesuffix(ending)
        for key, tensor in tensors.items()
        if key.endswith(ending) and tensor.dim() == 2
    ]


def _untied(tensors: dict[str, Tensor], where: object) -> dict[str, Tensor]:
    """PEFT's files hold a tied table twice, a sidecar once.

    A tied head is an end that has an alpha, but no copy of its own.
    """
    joined = {key.split(".interpolator.")[0] for key in tensors if ".interpolator." in key}
    copied = {key.split(".expanded.")[0] for key in tensors if ".expanded." in key}
    bare, tables = sorted(joined - copied), _tables(tensors)
    if not bare or len(tables) != 1:
        return tensors
    if len(bare) > 1:
        raise CheckpointError(
            f"{where}: which of {bare} shares its weight with {tables[0]} cannot be told from the "
            "file; load it by load_sidecar() instead."
        )
    return tensors | {f"{bare[0]}.expanded.weight": tensors[f"{tables[0]}.expanded.weight"]}


def _tied_once(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out a head's table that is the embedding's, which stands in the decoder."""
    tables = _tables(tensors)
    if len(tables) != 2:
        return tensors
    pair = [tensors[f"{table}.expanded.weight"] for table in tables]
    if not torch.equal(*pair):
        return tensors
    block = next(key for key in tensors if ".expanded." in key and key.count(".") > 4)
    decoder = block.split(".")[0]
    head = next((table for table in tables if table.split(".")[0] != decoder), tables[1])
    return {key: tensor for key, tensor in tensors.items() if key != f"{head}.expanded.weight"}
