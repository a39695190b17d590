"""Tensors that are saved in parts, by `torch.distributed.checkpoint`; read by any number of ranks.

Each rank writes the parts that it holds into one file, `shard-00001-model-00001-of-00001
.safetensors`; the headers say where each part belongs. A reader gives tensors to be filled, in
parts or whole, and reads no more than those need. Files that one process wrote in one piece are
read in the same way.
"""

import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from controlllm.checkpoint.training.saved import OPTIMIZER_PREFIX
from controlllm.common.distributed import Ranks
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.files import read_json, save_tensors, write_json
from controlllm.common.storage.tensor_headers import read_header
from controlllm.common.tensors import require_same
from controlllm.expansion.files.base_files import INDEX

__all__ = [
    "fill_some",
    "fill_tensors",
    "is_sharded",
    "join_shards",
    "map_joined",
    "read_shards",
    "shard_files",
    "start_shards",
    "tensor_shapes",
]

AT_ONCE = 1 << 30
"""Bytes of whole tensors that are in memory while parts are joined."""


def is_sharded(folder: Path) -> bool:
    """Whether several processes wrote the tensors of a checkpoint."""
    return bool(shard_files(folder))


def shard_files(folder: Path) -> list[Path]:
    """The files of all ranks, in their order."""
    return sorted(folder.glob("shard-*.safetensors"))


def start_shards(folder: Path, tensors: Mapping[str, Tensor], group: Any) -> Future[Any]:
    """Begin to write this rank's parts; training may go on, the tensors are copied before it does.

    Collective.

    Args:
        folder: where to, the same for all ranks, on a disk that all of them see.
        tensors: by name; the same names on every rank.
        group: a gloo group that nothing else uses: on one that does, the background thread's
            collectives and others wait for one another for ever.
    """
    dcp = _dcp()
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    # What has a gradient cannot be copied where it lies on a mesh of two dimensions.
    parts = {name: tensor.detach() for name, tensor in tensors.items()}
    future = dcp.async_save(parts, storage_writer=writer, process_group=group)
    return cast("Future[Any]", future)


def fill_tensors(folder: Path, targets: Mapping[str, Tensor], ranks: Ranks) -> set[str]:
    """Read a checkpoint's tensors into given ones, in parts or whole. Collective.

    An optimizer's may be missing there: it has no state of a parameter that never had a gradient.

    Returns:
        The names of those that were filled.

    Raises:
        CheckpointError: names or shapes are not those of the checkpoint; nothing is filled then.
    """
    sizes = tensor_shapes(folder)
    wanted = {
        name: tensor
        for name, tensor in targets.items()
        if name in sizes or not name.startswith(OPTIMIZER_PREFIX)
    }
    saved = {name: size for name, size in sizes.items() if _is_ours(name)}
    require_same({name: tensor.shape for name, tensor in wanted.items()}, saved, str(folder))
    _load(_reader(folder), wanted, ranks)
    return set(wanted)


def read_shards(folder: Path, without: str | None = None) -> dict[str, Tensor]:
    """The tensors that several processes wrote, whole, in the memory of this one.

    Names that begin with `without` are left out.
    """
    tensors: dict[str, Tensor] = {}
    for some in _read_some(folder, without):
        tensors |= some
    return tensors


def join_shards(folder: Path, target: Path, without: str | None = None) -> None:
    """Write whole what several processes wrote in parts, holding about a GiB at a time.

    The files have the Hugging Face form, with an index; names that begin with `without` are
    left out.

    Raises:
        OSError: the disk is full, say.
    """
    places: dict[str, str] = {}
    size = 0
    for number, tensors in enumerate(_read_some(folder, without), start=1):
        name = f"model-{number:05}.safetensors"
        save_tensors(target / name, tensors, {"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    write_json(target / INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def map_joined(folder: Path) -> dict[str, Tensor]:
    """What `join_shards` wrote, mapped: read from the disk when it is used, given back at need."""
    from safetensors.torch import load_file

    names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    return {key: value for name in names for key, value in load_file(folder / name).items()}


def _read_some(folder: Path, without: str | None) -> Iterator[dict[str, Tensor]]:
    """Whole tensors, at most `AT_ONCE` bytes or a single one at a time."""
    reader = _reader(folder)
    entries = _entries(folder)
    some: dict[str, Tensor] = {}
    for name in sorted(filter(_is_ours, entries)):
        if without is not None and name.startswith(without):
            continue
        tensor = torch.empty(entries[name].size, dtype=entries[name].properties.dtype)
        if some and sum(t.nbytes for t in some.values()) + tensor.nbytes > AT_ONCE:
            _load(reader, some, Ranks())
            yield some
            some = {}
        some[name] = tensor
    if some:
        _load(reader, some, Ranks())
        yield some


def _load(reader: Any, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    alone = ranks.world_size == 1
    with warnings.catch_warnings():
        # That a single process reads is what was asked for.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        _dcp().load(dict(tensors), storage_reader=reader, process_group=ranks.group, no_dist=alone)


def _reader(folder: Path) -> Any:
    return _dcp().HuggingFaceStorageReader(str(folder))


def _dcp() -> Any:
    """Imported only where it is used; it takes a while, and its types are not exported."""
    import torch.distributed.checkpoint

    return torch.distributed.checkpoint


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the safetensors files of a folder; headers are read, no tensors.

    Raises:
        CheckpointError: a file is broken or truncated.
    """
    return {name: tuple(entry.size) for name, entry in _entries(folder).items()}


def _entries(folder: Path) -> dict[str, Any]:
    """What the headers say of every tensor."""
    for file in sorted(folder.glob("*.safetensors")):
        read_header(file)
    try:
        found: dict[str, Any] = _reader(folder).read_metadata().state_dict_metadata
        return {name: entry for name, entry in found.items() if entry.size is not None}
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of notes beside tensors
        raise CheckpointError(
            f"{folder}: the shards do not say which tensors they are parts of ({error!r}); copy "
            "or download them again."
        ) from error


def fill_some(folder: Path, targets: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Read some tensors of a folder of safetensors files into given ones. Collective.

    Raises:
        CheckpointError: one is not there.
    """
    shapes = tensor_shapes(folder)
    for name, tensor in targets.items():
        if shapes.get(name) != tuple(tensor.shape):
            raise CheckpointError(
                f"{folder} has no tensor {name} of shape {tuple(tensor.shape)} "
                f"(there: {shapes.get(name)})."
            )
    _load(_reader(folder), targets, ranks)


def _is_ours(name: str) -> bool:
    """Whether a tensor is a model's or an optimizer's; numbers are names in the other states."""
    return not name.isdigit()
