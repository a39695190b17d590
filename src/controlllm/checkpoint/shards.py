"""Tensors that are saved in parts, by `torch.distributed.checkpoint`; read by any number of ranks.

Each rank writes the parts that it holds into one file, `shard-00001-model-00001-of-00001
.safetensors`; the headers say where each part belongs. Whoever reads gives tensors to be filled, in
parts or whole, and reads no more than those need. Files that one process wrote in one piece are
read in the same way.
"""

import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from controlllm.common.distributed import Ranks
from controlllm.common.errors import CheckpointError
from controlllm.expansion.sidecar import few

__all__ = [
    "fill_some",
    "fill_tensors",
    "is_sharded",
    "read_shards",
    "shard_files",
    "start_shards",
    "tensor_shapes",
]


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


def fill_tensors(
    folder: Path, targets: Mapping[str, Tensor], ranks: Ranks, optional: str = "optimizer/"
) -> set[str]:
    """Read a checkpoint's tensors into given ones, in parts or whole. Collective.

    Args:
        folder: a verified checkpoint.
        targets: what to fill, by name.
        ranks: the processes that read.
        optional: how names begin of those that may be missing in the checkpoint (an optimizer has
            no state of a parameter that never had a gradient).

    Returns:
        The names of those that were filled.

    Raises:
        CheckpointError: names or shapes are not those of the checkpoint; nothing is filled then.
    """
    dcp = _dcp()
    reader = dcp.HuggingFaceStorageReader(str(folder))
    sizes = tensor_shapes(folder)
    wanted = {
        name: tensor
        for name, tensor in targets.items()
        if name in sizes or not name.startswith(optional)
    }
    _require_same(wanted, sizes, folder)
    _load(reader, wanted, ranks)
    return set(wanted)


def read_shards(folder: Path, without: str | None = None) -> dict[str, Tensor]:
    """The tensors that several processes wrote, whole, on the CPU of this one.

    Args:
        folder: a verified checkpoint.
        without: how names begin of those that are left out.
    """
    dcp = _dcp()
    reader = dcp.HuggingFaceStorageReader(str(folder))
    metadata = reader.read_metadata().state_dict_metadata
    own = {
        name for name in _names_in_shards(folder) if without is None or not name.startswith(without)
    }
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if name in own
    }
    _load(reader, tensors, Ranks())
    return tensors


def _load(reader: Any, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    alone = ranks.world_size == 1
    with warnings.catch_warnings():
        # That a single process reads is what was asked for.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        _dcp().load(dict(tensors), storage_reader=reader, process_group=ranks.group, no_dist=alone)


def _dcp() -> Any:
    """Imported only where it is used; it takes a while, and its types are not exported."""
    import torch.distributed.checkpoint

    return torch.distributed.checkpoint


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the safetensors files of a folder; headers are read, no tensors."""
    reader = _dcp().HuggingFaceStorageReader(str(folder))
    entries = reader.read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in entries.items()}


def fill_some(folder: Path, targets: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Read some tensors of a folder of safetensors files into given ones. Collective.

    Args:
        folder: any, of ours or of others.
        targets: what to fill, in parts or whole, by the names of the files.
        ranks: the processes that read.

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
    _load(_dcp().HuggingFaceStorageReader(str(folder)), targets, ranks)


def _names_in_shards(folder: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for path in shard_files(folder):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def _require_same(
    targets: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, ...]], where: Path
) -> None:
    # Numbers are names of tensors of the other states.
    saved = {name for name in sizes if not name.isdigit()}
    missing, extra = sorted(targets.keys() - saved), sorted(saved - targets.keys())
    if missing or extra:
        raise CheckpointError(
            f"{where} does not fit this model: missing {few(missing)}, left over {few(extra)}; "
            "set the model up as it was when it was saved."
        )
    for name, tensor in targets.items():
        if tuple(tensor.shape) != sizes[name]:
            raise CheckpointError(
                f"{where}: {name} has shape {sizes[name]}, here it is "
                f"{tuple(tensor.shape)}; set the model up as it was when it was saved."
            )
