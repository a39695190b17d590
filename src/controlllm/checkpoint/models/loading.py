"""Any folder or name to a model and its tokenizer.

| what is given | what is loaded |
|---|---|
| a run folder | its best checkpoint, else its newest whole one |
| `run/checkpoint-40`, `run/best` | that checkpoint on its base |
| a sidecar, a PEFT adapter | that on its base (the recorded name or path, or what is given) |
| a full expanded model, a Hugging Face model | the folder itself |
| a name on the Hub | that model, or the sidecar or adapter there on its base |
| an address (`hdfs://...`) of any of these folders | a copy of it on this machine |

Only safetensors are read, and code that comes with a model runs only if the user says so. They are
mapped: weights that stay as they are (frozen ones, in the type and on the device they have) take no
memory that the system could not take back. What several processes wrote is joined in a temporary
file first.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.apart import Apart, joined_parts, saved_apart
from controlllm.checkpoint.models.load_options import LoadOptions
from controlllm.checkpoint.models.locate import Kind, Location, locate, locate_recorded
from controlllm.checkpoint.models.parents import find_parent, put_on
from controlllm.checkpoint.models.whole import (
    check_files,
    from_pretrained,
    load_whole,
    require_rows,
)
from controlllm.checkpoint.training.manifest import verify_manifest
from controlllm.checkpoint.training.saved import KINDS, OPTIMIZER_PREFIX
from controlllm.checkpoint.training.shards import map_joined, shard_files
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.packages.quantizers import QUANTIZERS
from controlllm.common.storage.tensor_headers import require_file
from controlllm.expansion import ControlLLMForCausalLM, collapse
from controlllm.expansion.files.fingerprint import fingerprint
from controlllm.expansion.files.lineage import dial_of, folded_parent
from controlllm.expansion.files.records import (
    SIDECAR_WEIGHTS,
    read_model_file,
    read_sidecar_config,
)
from controlllm.expansion.surgery.int8_copies import quantize_copies

__all__ = ["find_tokenizer", "load_model", "load_stage", "load_tokenizer"]


def load_model(
    path_or_name: str | Path, options: LoadOptions | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from any form: a run, a checkpoint, a sidecar, a full model.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        CheckpointError: if there is nothing to load, a file is damaged, or the base is another one.
        ModelError: if a sidecar cannot be put on its base.
        ConfigError: if an option cannot be followed here.
    """
    options = options or LoadOptions()
    kind = options.quantize_base
    if kind is not None and not QUANTIZERS.get(kind).at_load:
        raise ConfigError(
            f"quantize_base={kind!r} quantises a model that is loaded already: leave it out here, "
            f"and call controlllm.train.setup.quantize.quantize_base(model, {kind!r})."
        )
    loaded = _load(locate(path_or_name, options.storage_options), options, ())
    if options.quantize_copies is not None:
        quantize_copies(loaded[0], options.quantize_copies)
    return loaded


def _load(
    location: Location, options: LoadOptions, above: tuple[str, ...]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load what lies there; `above` are the places of what is to be put on it."""
    if location.kind is Kind.CHECKPOINT:
        verify_manifest(location.path)
    apart = saved_apart(location, options.revision)
    if apart is None and options.base:
        raise ConfigError(
            f"base={options.base!r} would not be used: {location.path} is a whole model; leave it "
            "out."
        )
    with joined_parts(location, options) as joined:
        if apart is None:
            base = _recorded_name(location)
            model = load_whole(location.path if joined is None else str(joined), options)
        else:
            base, base_options = _base_of(apart, location, options)
            tensors = None if joined is None else map_joined(joined)
            model = put_on(
                _base_model(apart, base, base_options, (*above, location.path), options.base),
                apart,
                tensors,
                options,
            )
        if apart is None or apart.kind is KINDS["part"]:
            model.config.name_or_path = location.path
    tokenizer = load_tokenizer(_tokenizer_places(location, apart, base), options)
    require_rows(model, tokenizer)
    return _placed(model.eval(), options.device), tokenizer


def find_tokenizer(
    path_or_name: str | Path, options: LoadOptions | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that `load_model` would give, without the model.

    Where options have a `tokenizer_name_or_path`, the model need not be there.

    Raises:
        CheckpointError: if there is nothing to load, or no tokenizer.
    """
    options = options or LoadOptions()
    if options.tokenizer_name_or_path:
        return load_tokenizer([], options)
    location = locate(path_or_name, options.storage_options)
    apart = saved_apart(location, options.revision)
    base = _base_of(apart, location, options)[0] if apart else _recorded_name(location)
    return load_tokenizer(_tokenizer_places(location, apart, base), options)


def load_tokenizer(
    places: list[str], options: LoadOptions | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer from the first place that has one, or from the one that options name.

    Args:
        places: folders and names; a folder without tokenizer files is passed over.
        options: `tokenizer_name_or_path`, `revision` and `trust_remote_code` are used.

    Raises:
        CheckpointError: if none of the places has a tokenizer.
    """
    options = options or LoadOptions()
    places = [options.tokenizer_name_or_path] if options.tokenizer_name_or_path else places
    for place in places:
        if not Path(place).is_dir() or (Path(place) / "tokenizer_config.json").is_file():
            check_files(place, options.revision)
            return cast(
                PreTrainedTokenizerBase,
                from_pretrained(AutoTokenizer.from_pretrained, place, options),
            )
    raise CheckpointError(
        f"no tokenizer in {', '.join(places)}; name one (`tokenizer_name_or_path`)."
    )


def _base_of(apart: Apart, location: Location, options: LoadOptions) -> tuple[str, LoadOptions]:
    """Where the base is and how to load it: as the user says, else as recorded.

    Raises:
        CheckpointError: if nothing is recorded, or an address, or the folder is not there.
    """
    assert apart.kind.base_of is not None  # `saved_apart` has looked
    recorded = apart.kind.base_of(apart.folder)
    if options.base:
        path = locate(options.base, options.storage_options).path
    else:
        path = locate_recorded(recorded.get("name_or_path"), apart.folder).path
    revision = None if location.kind is Kind.HUB else options.revision
    if revision is None and options.base is None:
        revision = recorded.get("revision")
    dtype = options.dtype
    if dtype == "auto":
        dtype = recorded.get("dtype") or _dtype_of(apart)
    return path, replace(options, base=None, revision=revision, dtype=dtype)


def _load_base(name: str, options: LoadOptions, above: tuple[str, ...]) -> PreTrainedModel:
    """A base that is whole, or was itself saved apart from another one."""
    location = locate(name)
    if saved_apart(location, options.revision) is None and location.kind is not Kind.CHECKPOINT:
        return load_whole(location.path, options)
    if location.path in above:
        raise CheckpointError(
            f"{name} records itself as its own base; give the right one as `base`."
        )
    return _load(location, replace(options, device="cpu"), above)[0]


def _base_model(
    apart: Apart, name: str, options: LoadOptions, above: tuple[str, ...], given: str | None
) -> PreTrainedModel:
    """The base that something is put on; where that is a folded stage, it is folded again.

    `given` is the base that the user names: the folded one itself, or that of the whole chain.

    Raises:
        CheckpointError: a stage that it was folded from is not there, or is another one.
        ConfigError: a folded base is asked for in few bits.
    """
    values = read_sidecar_config(apart.folder) if apart.kind is KINDS["control"] else {}
    parents = values.get("parents", [])
    last = folded_parent(parents)
    if last is None:
        return _load_base(name, options, above)
    if options.quantize_base is not None:
        raise ConfigError(
            f"quantize_base={options.quantize_base!r}: the base of {apart.folder} is made of a "
            "folded stage, which is not loaded in few bits; leave it out."
        )
    if given is not None:
        base = _load_base(name, options, above)
        if fingerprint(base) == values["base"].get("fingerprint"):
            return base
    dtype = parents[last].get("dtype", "float32")
    location = find_parent(parents[last], apart.folder, options)
    stage = load_stage(parents[last], location, replace(options, base=given, dtype=dtype))
    base = collapse(stage, inplace=True)
    return base if options.dtype == "auto" else base.to(getattr(torch, options.dtype))


def load_stage(
    record: Mapping[str, Any], location: Location, options: LoadOptions
) -> ControlLLMForCausalLM:
    """A stage that a sidecar was trained after, on the CPU, where its dial stood then.

    Args:
        record: one of the sidecar's `parents`.
        location: where it was found (`find_parent`).
        options: how it is loaded; `base` is the one of the whole chain.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    model = _load(location, replace(options, device="cpu"), ())[0]
    assert isinstance(model, ControlLLMForCausalLM)  # `find_parent` has looked
    model.stand_at(dial_of(record))
    return model


def _dtype_of(apart: Apart) -> str:
    """The type that a sidecar was trained and saved in, so that its base is loaded in the same.

    Of an adapter that does not note it: as the base is saved.
    """
    if apart.kind is not KINDS["control"]:
        return "auto"
    sidecar = apart.folder
    if (packed := read_sidecar_config(sidecar).get("packed")) is not None:
        return str(packed["dtype"])
    path = next(iter(shard_files(sidecar)), sidecar / SIDECAR_WEIGHTS)
    require_file(path)
    try:
        with safe_open(path, "pt") as tensors:
            names = (name for name in tensors.keys() if not name.startswith(OPTIMIZER_PREFIX))  # noqa: SIM118
            name = next(name for name in names if ".expanded." in name)
            return str(tensors.get_tensor(name).dtype).removeprefix("torch.")
    except (OSError, SafetensorError, StopIteration) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def _recorded_name(location: Location) -> str | None:
    """The name a whole model was trained from, for its tokenizer."""
    if location.kind is not Kind.CHECKPOINT:
        return None
    name: str | None = read_model_file(Path(location.path)).get("_name_or_path")
    return name or None


def _tokenizer_places(location: Location, apart: Apart | None, base: str | None) -> list[str]:
    """The model's folder, its run folder, its base."""
    places = [location.path if apart is None else str(apart.folder)]
    if location.kind is Kind.CHECKPOINT:
        places.append(str(Path(location.path).parent))
    return [*places, base] if base else places


def _placed(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """The model on its device (ConfigError)."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        module: torch.nn.Module = model
        module.to(device)
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(f"device={device!r} cannot be used: {error}") from error
    return model
