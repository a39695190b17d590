"""What our JSON files and those of transformers may say: the schemas, with bounds.

The bounds keep a number in somebody's file from costing time or memory. They are far above what any
model has.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypedDict

from controlllm.common.errors import CheckpointError
from controlllm.common.storage.files import read_json
from controlllm.common.storage.schema import (
    OPEN,
    at_most,
    between,
    check_record,
    matching,
    read_record,
)
from controlllm.common.storage.tensor_headers import read_header
from controlllm.expansion.method.expansion_config import (
    BASE,
    MODEL_TYPE,
    SIDECAR_NAME,
    SIDECARS_TYPE,
    ExpansionConfig,
)

__all__ = [
    "BASE",
    "BRANCH",
    "FOLD",
    "PACKED_FORMAT",
    "SETTINGS_DIGEST",
    "SIDECAR_CONFIG",
    "SIDECAR_FORMAT",
    "SIDECAR_WEIGHTS",
    "BaseRecord",
    "Dtype",
    "IndexFile",
    "ModelFile",
    "PackedRecord",
    "ParentRecord",
    "PlainNames",
    "SidecarFile",
    "TensorPart",
    "function_digest",
    "read_model_file",
    "read_sidecar_config",
]

FOLD = "fold"
"""The way after which the base is the stage before, folded."""
BRANCH = "branch"
"""The way after which the stage before stays, beside what is learned then."""
SIDECAR_CONFIG, SIDECAR_WEIGHTS = "sidecar_config.json", "sidecar.safetensors"
SIDECAR_FORMAT = 2
PACKED_FORMAT = 3
"""Of a sidecar in few bits, which versions that read format 2 only are to refuse."""
SETTINGS_DIGEST = "settings_sha256"
"""What the weights' file of a sidecar notes: `function_digest` of its settings."""

Text = Annotated[str, at_most(4096)]
Layers = Annotated[int, between(0, 10_000)]
Width = Annotated[int, between(0, 2**24)]
Dtype = Literal["float64", "float32", "bfloat16", "float16"]

TensorPart = Annotated[str, matching(r"\w[\w.-]{0,499}", "a plain name, no pattern")]
"""A part of the name of a tensor or module; no character of it means anything in a regex but `.`,
which there means any character."""
PlainNames = Annotated[list[TensorPart], at_most(50_000)]
StageName = Annotated[str, matching(r"[A-Za-z0-9][\w.-]{0,63}", "a plain name")]
_Dial = Annotated[float, between(0, 1)]
_Layer = Annotated[str, matching(r"-1|\d{1,4}", "a layer")]
_Dials = _Dial | dict[_Layer, _Dial] | None


class BaseRecord(TypedDict, total=False):
    """What is known of a base (`describe_base`, `base_record`)."""

    name_or_path: Text | None
    revision: Text | None
    architecture: Text | None
    num_hidden_layers: Layers
    vocab_size: Width | None
    grown_vocab_size: Width | None
    quantised: Annotated[list[Text], at_most(100)]
    num_parameters: Annotated[int, between(0, 2**50)]
    dtype: Dtype
    fingerprint: Text | None


class _ExpandedBase(BaseRecord, total=False):
    """Of an expanded model."""

    num_hidden_layers: Required[Layers]  # type: ignore[misc]


class PackedRecord(TypedDict):
    """Which matrices of a sidecar are in few bits.

    `bits` of a number, the `dtype` they were trained in, and by their names how many `columns`,
    numbers of a row, they have: bytes do not tell.
    """

    bits: Required[Literal[1, 2, 4]]
    dtype: Required[Dtype]
    columns: Required[Annotated[dict[TensorPart, Width], at_most(50_000)]]


class ParentRecord(TypedDict, total=False):
    """One stage that a sidecar was trained after (`lineage`).

    `place` is where it lay, `digest` its identity, `dial` where its dial stood when it was
    continued, `way` how (`continue_by`), `dtype` the type that it was folded in, `weight` where its
    dial stands beside the sidecar, if elsewhere (a blend of branches that was measured).
    """

    name: Required[StageName]
    place: Required[Text]
    digest: Required[Annotated[str, matching(r"[0-9a-f]{64}", "a SHA-256 in hex")]]
    way: Required[Annotated[str, matching(r"\w[\w.-]{0,63}", "a plain name")]]
    dial: _Dials
    weight: _Dials
    dtype: Dtype


Parents = Annotated[list[ParentRecord], at_most(1000)]


class SidecarFile(TypedDict, total=False):
    """`sidecar_config.json`."""

    format: Required[int]
    expansion: Required[ExpansionConfig]
    base: Required[_ExpandedBase]
    peft: dict[str, Any]
    packed: PackedRecord
    parents: Parents


class _Sizes(TypedDict, total=False):
    """Of a decoder, by the names that configs of transformers give them."""

    num_hidden_layers: Layers | None
    n_layer: Layers | None
    n_layers: Layers | None
    num_layers: Layers | None
    vocab_size: Width | None
    hidden_size: Width | None
    n_embd: Width | None
    intermediate_size: Annotated[int, between(0, 2**28)] | list[int] | None
    num_attention_heads: Width | list[int] | None
    num_key_value_heads: Width | list[int] | None
    max_position_embeddings: Annotated[int, between(0, 2**34)] | None


class ModelFile(_Sizes, total=False):
    """`config.json`."""

    model_type: Text
    architectures: Annotated[list[Text], at_most(100)] | None
    _name_or_path: Text | None
    text_config: Annotated[_Sizes, OPEN] | None
    quantization_config: dict[str, Any] | None


class _ExpandedFile(ModelFile, total=False):
    """`config.json` of a full expanded model."""

    text_config: Required[Annotated[_Sizes, OPEN]]  # type: ignore[misc]
    expansion: Required[ExpansionConfig]
    base: Required[_ExpandedBase]
    parents: Parents


class _Named(TypedDict):
    """One of several sidecars."""

    name: Annotated[str, matching(SIDECAR_NAME.pattern, "letters, digits, '_', '.' and '-'")]
    expansion: ExpansionConfig


class _SidecarsFile(ModelFile, total=False):
    """`config.json` of a base with several named sidecars."""

    text_config: Required[Annotated[_Sizes, OPEN]]  # type: ignore[misc]
    sidecars: Required[Annotated[list[_Named], at_most(64)]]
    base: Required[_ExpandedBase]


class IndexFile(TypedDict, total=False):
    """`model.safetensors.index.json`."""

    metadata: dict[str, Any] | None
    weight_map: Required[
        dict[
            str, Annotated[str, matching(r"[\w-][\w.-]{0,249}\.safetensors", "a safetensors file")]
        ]
    ]


def read_model_file(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model of transformers, or of a full expanded one.

    Returns:
        Its values; `expansion`, where it has one, or those of `sidecars`, are checked, too.

    Raises:
        CheckpointError: it is missing, or a field does not fit.
    """
    path = folder / "config.json"
    values = read_record(path, Annotated[ModelFile, OPEN])
    if values.get("model_type") == MODEL_TYPE:
        values = read_record(path, Annotated[_ExpandedFile, OPEN])
        values["expansion"] = values["expansion"].to_dict()
    elif values.get("model_type") == SIDECARS_TYPE:
        values = read_record(path, Annotated[_SidecarsFile, OPEN])
        for one in values["sidecars"]:
            one["expansion"] = one["expansion"].to_dict()
    return dict(values)


def read_sidecar_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a sidecar's config, and compare it with what its weights were written with.

    Raises:
        CheckpointError: if it is missing, broken, edited, or written by another version.
    """
    path, weights = Path(folder) / SIDECAR_CONFIG, Path(folder) / SIDECAR_WEIGHTS
    values = read_json(path)
    found = values.get("format") if isinstance(values, dict) else None
    if isinstance(found, int) and found not in (SIDECAR_FORMAT, PACKED_FORMAT):
        advice = "update controlllm" if found > PACKED_FORMAT else "make it anew"
        raise CheckpointError(
            f"{path} has format {found}; this version reads {SIDECAR_FORMAT} and, in few bits, "
            f"{PACKED_FORMAT}: {advice}."
        )
    checked = check_record(values, SidecarFile, path)
    if ("packed" in checked) != (checked["format"] == PACKED_FORMAT):
        raise CheckpointError(
            f"{path} has format {found}, and {'' if 'packed' in checked else 'no '}matrices in few "
            "bits: that does not go together. Export it again."
        )
    written = read_header(weights).metadata if weights.is_file() else None
    if written is not None and written.get(SETTINGS_DIGEST) != function_digest(values):
        raise CheckpointError(
            f"{path}: the settings are not those that {SIDECAR_WEIGHTS} was written with, and make "
            "another model of it. Export it again; its dial is changed by `controlllm calibrate`."
        )
    return {**checked, "expansion": checked["expansion"].to_dict()}


def function_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 over what decides which function a sidecar's tensors make of its base.

    All settings of the expansion and of adapters, what is in few bits, the base's weights, and the
    stages before; not dials, weights and measured alphas, which are set afterwards, nor where base
    and stages lie, which may move. No signature: whoever changes the settings can make it anew.
    """
    apart = ("dial", "mean_alpha")
    parts = [values.get("expansion", {}), values.get("base", {})]
    parts += [values.get("peft"), values.get("parents")]
    expansion, base, peft, parents = json.loads(json.dumps(parts))  # as it will be read
    settings = {key: value for key, value in expansion.items() if key not in apart}
    names = ("fingerprint", "num_hidden_layers", "vocab_size", "grown_vocab_size")
    record = [settings, {name: base.get(name) for name in names}, peft]
    if "packed" in values:
        record.append(values["packed"])
    if parents:
        record.append([{**parent, "place": None, "weight": None} for parent in parents])
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
