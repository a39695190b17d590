r"""The training checkpoint: everything a run needs to go on as if it had never stopped.

    run/
      config.yaml                the resolved run config (written by `train`)
      checkpoint-40/
        sidecar.safetensors      the trained tensors \ of method `control`: the folder is a sidecar,
        sidecar_config.json      base, expansion     / `load_sidecar(base, folder)` reads it
        model.safetensors        the trained tensors \ of method `full`, instead: the folder is
        config.json              the model's config  / a Hugging Face model (`kinds` has the others)
        optimizer.safetensors    tensors of the optimizer
        state.safetensors        tensors of the random states, ...
        state.json               the rest of these states
        manifest.json            format version, size and SHA-256 of every file; written last
      best.json                  which checkpoint is the best one

Where several processes train, each writes what it holds of the trained and the optimizer's tensors,
`shard-*.safetensors` (see `shards`), instead of the files for them.

A checkpoint is written under a temporary name and renamed when it is whole, so a folder named
`checkpoint-N` without a fitting manifest was damaged afterwards: it is named in an error and never
loaded. No file holds a pickle.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypedDict

from torch import Tensor

from controlllm.checkpoint.training.checkpoints import prune_checkpoints
from controlllm.checkpoint.training.codec import pack, unpack
from controlllm.checkpoint.training.manifest import STATE, verify_manifest, write_manifest
from controlllm.checkpoint.training.saved import BASE_RECORD, KINDS, OPTIMIZER_PREFIX, kind_in
from controlllm.checkpoint.training.shards import is_sharded, read_shards
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.files import (
    atomic_folder,
    read_json,
    save_tensors,
    write_json,
)
from controlllm.common.storage.schema import between, check_record
from controlllm.common.storage.tensor_files import read_tensors
from controlllm.expansion.files.sidecar import sidecar_metadata

__all__ = [
    "TrainingState",
    "load_checkpoint",
    "load_values",
    "save_checkpoint",
    "write_values",
]

_STATE_TENSORS = "state.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_APART = ("tensors", "model", "optimizer_tensors")
_MOST_STATE = 2**30
"""Bytes of `state.json`: a row for each logged step, the positions of all sources."""


class _StateFile(TypedDict):
    """`state.json`, unpacked."""

    step: Annotated[int, between(0, 2**53)]
    optimizer: dict[Any, Any]
    scheduler: dict[Any, Any]
    loader: dict[Any, Any]
    rng: list[dict[Any, Any]]
    history: list[dict[Any, Any]]
    extra: dict[Any, Any]


@dataclass
class TrainingState:
    """What a training checkpoint holds; dicts may nest dicts, lists, tuples, tensors and values."""

    step: int
    """Optimizer steps done."""
    tensors: dict[str, Tensor]
    """The model's trained tensors by name (`trained_tensors(model)`)."""
    model: dict[str, Any]
    """What model they belong to: `method`, `config`, `base` (`describe_model(model)`)."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """What is not in tensors of the optimizer's state (`optimizer_state`)."""
    optimizer_tensors: dict[str, Tensor] = field(default_factory=dict)
    """The tensors of the optimizer's state by name (`optimizer_state`)."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """`scheduler.state_dict()` as it is."""
    loader: dict[str, Any] = field(default_factory=dict)
    """The data loader's position."""
    rng: list[dict[str, Any]] = field(default_factory=list)
    """The random states of each rank (`capture_rng()`)."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per logged step."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Anything else the loop must remember."""


def save_checkpoint(
    output_dir: str | Path, state: TrainingState, save_total_limit: int | None = None
) -> Path:
    """Write `output_dir/checkpoint-{step}` atomically and remove the oldest ones beyond the limit.

    None keeps all; the best and the newest are always kept.

    Raises:
        CheckpointError: if the disk is full or the state holds something that cannot be saved;
            older checkpoints are untouched.
    """
    target = Path(output_dir) / f"checkpoint-{state.step}"
    kind, metadata = KINDS[state.model["method"]], {"format": "pt"}
    if kind is KINDS["control"]:  # As in every sidecar: what the tensors were trained with.
        metadata = sidecar_metadata(state.model["config"])
    with atomic_folder(target, overwrite=True) as folder:
        save_tensors(folder / kind.weights, state.tensors, metadata)
        save_tensors(folder / _OPTIMIZER, state.optimizer_tensors, {"format": "pt"})
        write_values(folder, state)
        write_manifest(folder)
    prune_checkpoints(Path(output_dir), save_total_limit, keep=target)
    return target


def write_values(folder: Path, state: TrainingState) -> None:
    """Write all of a state but the trained and the optimizer's tensors."""
    plain, tensors = pack(
        {f.name: getattr(state, f.name) for f in fields(state) if f.name not in _APART}
    )
    write_json(folder / KINDS[state.model["method"]].config, state.model["config"])
    if "base" in state.model:
        write_json(folder / BASE_RECORD, state.model["base"])
    save_tensors(folder / _STATE_TENSORS, tensors, {"format": "pt"})
    write_json(folder / STATE, plain, indent=None)


def load_values(folder: str | Path) -> TrainingState:
    """Read all of a checkpoint but the trained and the optimizer's tensors; no sum is verified.

    Raises:
        CheckpointError: a file is broken, or a field does not fit.
    """
    folder = Path(folder)
    plain = check_record(read_json(folder / STATE, _MOST_STATE), dict[str, Any], folder / STATE)
    values = unpack(plain, read_tensors(folder / _STATE_TENSORS))
    values = check_record(values, _StateFile, folder / STATE)
    kind = kind_in(folder)
    if kind is None:
        raise CheckpointError(f"{folder} does not say which model it holds.")
    model = {"method": kind.name, "config": read_json(folder / kind.config)}
    if (folder / BASE_RECORD).is_file():
        model["base"] = read_json(folder / BASE_RECORD)
    return TrainingState(tensors={}, model=model, **values)


def load_checkpoint(folder: str | Path) -> TrainingState:
    """Read a checkpoint after verifying every file of it; tensors come whole, on the CPU.

    Raises:
        CheckpointError: if it is missing, foreign, of a newer format, truncated or changed.
    """
    folder = Path(folder)
    verify_manifest(folder)
    state = load_values(folder)
    if is_sharded(folder):
        tensors = read_shards(folder)
    else:
        weights = folder / KINDS[state.model["method"]].weights
        tensors = read_tensors(weights) | read_tensors(folder / _OPTIMIZER)
    for name, tensor in tensors.items():
        place = state.optimizer_tensors if name.startswith(OPTIMIZER_PREFIX) else state.tensors
        place[name] = tensor
    return state
