"""A sidecar onto its base: the base is expanded, and gets the sidecar's tensors."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from controlllm.common.adapters import switch_adapters
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.checksums import verify_checksums
from controlllm.common.storage.tensor_files import require_numbers
from controlllm.common.tensors import copy_tensors
from controlllm.expansion.files.base_record import check_base as check_recorded
from controlllm.expansion.files.lineage import folded_parent
from controlllm.expansion.files.packed import Packed, has_rows, put_packed
from controlllm.expansion.files.records import SIDECAR_CONFIG, read_sidecar_config
from controlllm.expansion.files.sidecar import read_sidecar_tensors, sidecar_tensors
from controlllm.expansion.hub.expand import expand
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.hub.peft import put_adapters
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.surgery.checks import refuse_expanded

__all__ = ["load_sidecar"]


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
            shape; the base is then unchanged.
        ModelError: if the base is expanded already.
    """
    refuse_expanded(base)
    values = read_sidecar_config(folder)
    if tensors is None:
        verify_checksums(Path(folder), ours=True)
    saved = read_sidecar_tensors(folder) if tensors is None else tensors
    require_numbers(saved, str(folder))
    if check_base:
        check_recorded(base, values["base"], f"The sidecar {folder}{_folded(values)}")
    packed = Packed(values["packed"], saved) if "packed" in values else None
    grown = values["base"].get("grown_vocab_size")
    if grown and not has_rows(saved, grown, packed):
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
        if packed is None:
            copy_tensors(sidecar_tensors(model), saved, str(folder))
        else:
            put_packed(model, sidecar_tensors(model), packed, str(folder))
    except Exception:
        model.unload()
        raise
    model.config.base |= values["base"]
    model.config.parents = values.get("parents", [])
    return model


def _folded(values: Mapping[str, Any]) -> str:
    """That the base is no model as it was published, for a message."""
    parents = values.get("parents", [])
    last = folded_parent(parents)
    if last is None:
        return ""
    return (
        f", whose base has the stage {parents[last]['name']!r} folded in (load_model makes that "
        "base anew),"
    )
