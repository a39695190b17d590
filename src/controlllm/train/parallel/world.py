"""The processes of a run while it lasts: their group, their mesh, and what they agree on."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from controlllm.common.distributed import ALONE, Ranks
from controlllm.common.errors import ConfigError, TrainingError
from controlllm.common.settings import LONGEST_SECONDS
from controlllm.train.config.parallel_config import ParallelConfig
from controlllm.train.parallel.device import find_device
from controlllm.train.parallel.failures import failing_together, let_others_hear
from controlllm.train.parallel.mesh import plan_mesh
from controlllm.train.parallel.processes import Place, place_in

__all__ = ["World", "open_world"]

TENSOR = "tensor"
"""Name of the mesh's dimension of tensor groups."""
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@dataclass(frozen=True)
class World:
    """All processes of the run."""

    ranks: Ranks  # this one among them
    config: ParallelConfig  # how they share the model
    mesh: Any = None  # the grid of copies and parts (and tensor groups); None for a single process
    local_rank: int = 0  # which device of this machine is this process's
    data_ranks: Ranks = field(default_factory=Ranks)
    """Those that see rows of their own, with this one's place among them; the same as `ranks` where
    no blocks are computed together."""

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.ranks.world_size

    @property
    def data_size(self) -> int:
        """How many of them see rows of their own."""
        return self.data_ranks.world_size

    def loader_ranks(self, timeout: float) -> Ranks:
        """The processes that share the rows, in a group for the data. Collective.

        It has a time-out of its own, in seconds.
        """
        ranks = Ranks.current(timeout)
        return ranks if self.data_size == self.size else _data_ranks(ranks, self.config.tensor_size)

    def writer_ranks(self) -> Ranks:
        """All processes, in a group that waits for one as long as it lives. Collective.

        It is for text that the first one writes, which takes as long as it takes; of a process that
        dies the others learn at once.
        """
        return Ranks.current(LONGEST_SECONDS)

    @property
    def shares(self) -> bool:
        """Whether the model is shared, and so computes in the precision that it is shared in."""
        return self.mesh is not None or self.config.way.by_deepspeed

    @property
    def cuts_weights(self) -> bool:
        """Whether each process keeps a part of the weights only."""
        return self.mesh is not None or (self.config.way.cuts_weights and self.size > 1)

    @property
    def sharding_mesh(self) -> Any:
        """The mesh of copies and parts."""
        names = tuple(name for name in self.mesh.mesh_dim_names if name != TENSOR)
        return self.mesh[names] if TENSOR in self.mesh.mesh_dim_names else self.mesh

    @property
    def tensor_mesh(self) -> Any:
        """The mesh of this process's tensor group; None where there are none."""
        if self.mesh is None or TENSOR not in self.mesh.mesh_dim_names:
            return None
        return self.mesh[TENSOR]

    @property
    def is_first(self) -> bool:
        """Whether this process writes for all: logs, checkpoints' marks, messages."""
        return self.ranks.rank == 0

    def synchronize_gradients(self, model: nn.Module, on: bool) -> None:
        """Whether the next backward pass adds up gradients over processes.

        Off for all but the last micro-batch of a step.
        """
        if self.mesh is not None:
            model.set_requires_gradient_sync(on)  # type: ignore[operator]  # an FSDPModule

    def reshard(self, model: nn.Module) -> None:
        """Free the weights that a forward pass without a backward left gathered.

        Its root's parameters are plain tensors as long as they are gathered.
        """
        if self.mesh is not None:
            model.reshard()  # type: ignore[operator]  # an FSDPModule

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes with rows of their own, in double precision. Collective."""
        same_rows = self.size // self.data_size
        return [value / same_rows for value in self.ranks.reduce(values, "sum")]

    def max(self, values: Sequence[float]) -> list[float]:
        """Maxima over all processes. Collective."""
        return self.ranks.reduce(values, "max")


@contextmanager
def open_world(config: ParallelConfig, device: str) -> Iterator[World]:
    """Join the processes that a launcher started; without a launcher this process is alone.

    A process group that is there already (a notebook's, a test's) is used and left as it is.

    Raises:
        ConfigError: the mesh does not fit the world, or the device is not there.
        TrainingError: the others cannot be reached.
    """
    place = place_in()
    if dist.is_available() and dist.is_initialized():
        local = place.local_world_size if place else dist.get_world_size()
        local_rank = place.local_rank if place else dist.get_rank()
        yield _world(config, device, Ranks.current(config.timeout), (local_rank, local))
        return
    if config.way.by_deepspeed and place is None:
        raise ConfigError(
            f"parallel.strategy={config.strategy} needs processes that a launcher starts: "
            "torchrun --nproc-per-node N -m controlllm.cli train ..., or --nproc N for several."
        )
    if place is None or (place.world_size == 1 and not config.way.by_deepspeed):
        yield _world(config, device, ALONE, (0, 1))
        return
    on_gpu = find_device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(_device_of(place, torch.cuda.device_count()))
    store = _join(place, config, on_gpu)
    ranks = Ranks.current(config.timeout)
    try:
        with failing_together(store, ranks):
            yield _world(config, device, ranks, (place.local_rank, place.local_world_size))
    except BaseException:
        # With a collective under way NCCL may wait for the others; the end of the process does not.
        if not on_gpu:
            dist.destroy_process_group()
        let_others_hear(store, ranks)
        raise
    dist.destroy_process_group()


def _device_of(place: Place, count: int) -> int:
    """Which GPU of those that this process sees is its own; a launcher may show it only that one.

    Raises:
        ConfigError: there are too few.
    """
    if count >= place.local_world_size:
        return place.local_rank
    if count == 1 and any(name in os.environ for name in _VISIBLE):
        return 0
    raise ConfigError(
        f"{place.local_world_size} processes on this machine, but torch sees {count} GPUs; start "
        "as many processes, or set model.device=cpu."
    )


def _join(place: Place, config: ParallelConfig, on_gpu: bool) -> Any:
    """Find the others; the store by which they are found is what failing ranks tell it by."""
    from torch.distributed.rendezvous import rendezvous

    timeout = timedelta(seconds=config.timeout)
    address = f"{place.address}:{place.port}"
    try:
        meeting = rendezvous(f"tcp://{address}", place.rank, place.world_size, timeout=timeout)
        store, _, _ = next(meeting)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("processes", store),  # type: ignore[attr-defined]
            rank=place.rank,
            world_size=place.world_size,
            timeout=timeout,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        if "EADDRINUSE" in str(error):
            raise TrainingError(
                f"rank {place.rank} of {place.world_size} cannot listen at {address}: the port is "
                "taken, perhaps by another run; set MASTER_PORT (torchrun: --master-port) to "
                "another one."
            ) from error
        raise TrainingError(
            f"rank {place.rank} of {place.world_size} did not find the others at {address} within "
            f"{config.timeout:g} s: {reason}"
        ) from error
    return store


def _world(config: ParallelConfig, device: str, ranks: Ranks, local: tuple[int, int]) -> World:
    """Make the device mesh; `local` is rank and number of processes on this machine."""
    plan = plan_mesh(config, ranks.world_size, _same_everywhere(config, ranks, local[1]))
    if ranks.world_size == 1 or config.way.by_deepspeed:
        return World(ranks, config, local_rank=local[0], data_ranks=ranks)
    from torch.distributed.device_mesh import init_device_mesh

    kind = find_device(device).type
    if config.cpu_offload and kind == "cpu":
        raise ConfigError("parallel.cpu_offload=true needs an accelerator; this run is on the CPU.")
    sizes = {"replicate": plan.copies, "shard": plan.parts, TENSOR: plan.tensor}
    kept = {name: size for name, size in sizes.items() if name == "shard" or size > 1}
    if not config.way.cuts_weights:
        kept = {"replicate": plan.copies, **kept}
    mesh = init_device_mesh(kind, tuple(kept.values()), mesh_dim_names=tuple(kept))
    return World(ranks, config, mesh, local[0], _data_ranks(ranks, plan.tensor))


def _data_ranks(ranks: Ranks, tensor: int) -> Ranks:
    """This process among those at its place in other tensor groups. Collective."""
    if tensor == 1:
        return ranks
    mine = Ranks()
    for place in range(tensor):
        members = list(range(place, ranks.world_size, tensor))
        group = dist.new_group(members, backend="gloo", timeout=ranks.patience)
        if ranks.rank in members and len(members) > 1:
            mine = Ranks(ranks.rank // tensor, len(members), group, ranks.patience)
    return mine


def _same_everywhere(config: ParallelConfig, ranks: Ranks, local_world_size: int) -> int:
    """The number of processes on each machine; that they differ matters only to a default."""
    sizes = ranks.gather(local_world_size)
    if config.way.has_groups and config.shard_size is None and len(set(sizes)) > 1:
        raise ConfigError(
            f"parallel.shard_size=null means the processes of one machine, and the machines have "
            f"{sorted(set(sizes))} of them; give a number."
        )
    return sizes[0]
