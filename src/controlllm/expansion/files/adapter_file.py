"""What the config of a PEFT adapter may say to be loaded here: `adapter_config.json`.

PEFT takes many of its fields as regular expressions, as names of modules to import, or as orders to
change the base. A stranger's adapter is given plain names and numbers only.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypedDict, get_type_hints

from controlllm.common.errors import CheckpointError
from controlllm.common.storage.files import read_json
from controlllm.common.storage.schema import OPEN, at_most, between, check_record
from controlllm.expansion.files.records import Layers, PlainNames, TensorPart, Text

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "adapter_settings",
    "check_adapter",
    "read_peft_config",
    "require_ranks",
]

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What PEFT calls the files of an adapter."""

_Rank = Annotated[int, between(1, 2**16)]
_Share = Annotated[float, between(0, 1)]
_MOST_PATTERNS = 1000


class _Adapter(TypedDict, total=False):
    """What adapters of both kinds have."""

    base_model_name_or_path: Text | None
    revision: Text | None
    task_type: Literal["CAUSAL_LM"] | None
    target_modules: Required[PlainNames]
    exclude_modules: PlainNames | None
    layers_to_transform: Annotated[list[Layers], at_most(10_000)] | Layers | None
    layers_pattern: PlainNames | TensorPart | None
    fan_in_fan_out: bool
    bias: Literal["none"]


class _Lora(_Adapter, total=False):
    peft_type: Required[Literal["LORA"]]
    r: Required[_Rank]
    lora_alpha: Annotated[float, between(0, 2**20)]
    lora_dropout: _Share
    use_rslora: bool
    use_dora: bool
    init_lora_weights: bool | Literal["gaussian", "orthogonal"]
    rank_pattern: Annotated[dict[TensorPart, _Rank], at_most(_MOST_PATTERNS)] | None
    alpha_pattern: (
        Annotated[dict[TensorPart, Annotated[float, between(0, 2**20)]], at_most(_MOST_PATTERNS)]
        | None
    )


class _Oft(_Adapter, total=False):
    peft_type: Required[Literal["OFT"]]
    r: Annotated[int, between(0, 2**16)]
    oft_block_size: Annotated[int, between(0, 2**16)]
    module_dropout: _Share
    coft: bool
    eps: Annotated[float, between(0, 1)]
    block_share: bool
    use_cayley_neumann: bool
    num_cayley_neumann_terms: Annotated[int, between(1, 100)]
    init_weights: bool


_SCHEMAS: dict[str, Any] = {"LORA": _Lora, "OFT": _Oft}
_UNREAD = ("auto_mapping", "peft_version", "inference_mode", "runtime_config")
"""What PEFT notes for itself."""


def check_adapter(values: Any, where: object) -> dict[str, Any]:
    """Check the fields of an adapter's config that are read here (CheckpointError)."""
    kind = values.get("peft_type") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in _SCHEMAS:
        raise CheckpointError(
            f"{where} has peft_type={kind!r:.80}; LORA and OFT can be loaded here. Merge it by "
            "PEFT (merge_and_unload), and load the whole model."
        )
    if isinstance(values.get("target_modules"), str):
        raise CheckpointError(
            f"{where}: target_modules is a pattern. Patterns of others are not run here: write the "
            "names of the layers as a list."
        )
    return dict(check_record(values, Annotated[_SCHEMAS[kind], OPEN], where))


def read_peft_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an adapter's config.

    Raises:
        CheckpointError: if it is missing, broken, or of a kind that is not supported.
    """
    path = Path(folder) / ADAPTER_CONFIG
    return check_adapter(read_json(path), path)


def adapter_settings(values: Any, defaults: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The settings that PEFT is given: those that are known, none that would do something else.

    Raises:
        CheckpointError: for a setting that does not fit, or that is not supported and is used.
    """
    checked = check_adapter(values, where)
    read = get_type_hints(_SCHEMAS[checked["peft_type"]]).keys()
    for key in checked.keys() - read - set(_UNREAD):
        if checked[key] and checked[key] != defaults.get(key):
            raise CheckpointError(
                f"{where}: {key!r:.80} is used, which is not supported here. Merge the adapter by "
                "PEFT (merge_and_unload), and load the whole model."
            )
    return {key: value for key, value in checked.items() if key in read}


def require_ranks(
    values: Mapping[str, Any], shapes: Iterable[Iterable[int]], where: object
) -> None:
    """Check that ranks are those of tensors, before any of that size is made (CheckpointError)."""
    sides = {side for shape in shapes for side in shape}
    ranks = {"r": values.get("r"), **(values.get("rank_pattern") or {})}
    for name, rank in ranks.items():
        if values["peft_type"] == "LORA" and rank not in sides:
            raise CheckpointError(
                f"{where}: no tensor has the rank {name}={rank}: the config is not that of these "
                "weights."
            )
