"""The processes of a run while it lasts: their group, their mesh, and what they agree on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from controlllm.common.distributed import Ranks
from controlllm.common.errors import ConfigError, TrainingError
from controlllm.train.parallel.mesh import plan_mesh
from controlllm.train.parallel.processes import Place, place_in
from controlllm.train.parallel_config import ParallelConfig

__all__ = ["World", "open_world"]

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """All processes of the run.

    Attributes:
        ranks: this one among them.
        config: how they share the model.
        mesh: the grid of copies and parts; None for a single process.
        local_rank: which device of this machine is this process's.
    """

    ranks: Ranks
    config: ParallelConfig
    mesh: Any = None
    local_rank: int = 0

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.ranks.world_size

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
        """Give back the weights that a forward pass without a backward left gathered.

        Its root's parameters are plain tensors as long as they are gathered.
        """
        if self.mesh is not None:
            model.reshard()  # type: ignore[operator]  # an FSDPModule

    def first(self, make: Callable[[], T]) -> T:
        """What a function gives on the first process, on all of them. Collective."""
        made: T | None = None
        error: Exception | None = None
        try:
            made = make() if self.is_first else None
        except Exception as failure:  # Told to all ranks, so that none waits for this one.
            error = failure
        self.ranks.agree(error)
        first: T = self.ranks.gather(made)[0]
        return first

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, in double precision. Collective."""
        return self.ranks.reduce(values, "sum")

    def max(self, values: Sequence[float]) -> list[float]:
        """Maxima over all processes. Collective."""
        return self.ranks.reduce(values, "max")


@contextmanager
def open_world(config: ParallelConfig, device: str) -> Iterator[World]:
    """Join the processes that a launcher started; a process that nobody launched is alone.

    A process group that is there already (a notebook's, a test's) is used and left as it is.

    Args:
        config: how they share the model.
        device: `model.device` of the run.

    Raises:
        ConfigError: the mesh does not fit the world.
        TrainingError: the others cannot be reached.
    """
    place = place_in()
    if dist.is_available() and dist.is_initialized():
        local = place.local_world_size if place else dist.get_world_size()
        yield _world(config, device, place.local_rank if place else dist.get_rank(), local)
        return
    if place is None or place.world_size == 1:
        yield World(Ranks(), config)
        return
    _join(place, config, device)
    try:
        yield _world(config, device, place.local_rank, place.local_world_size)
    finally:
        dist.destroy_process_group()


def _join(place: Place, config: ParallelConfig, device: str) -> None:
    on_gpu = _device_type(device) == "cuda"
    if on_gpu:
        if place.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {place.local_rank} of this machine has no GPU: there are "
                f"{torch.cuda.device_count()}; start as many processes, or set model.device=cpu."
            )
        torch.cuda.set_device(place.local_rank)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            init_method=f"tcp://{place.address}:{place.port}",
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=config.timeout),
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise TrainingError(
            f"rank {place.rank} of {place.world_size} did not find the others at "
            f"{place.address}:{place.port} within {config.timeout:g} s: {error}"
        ) from error


def _world(config: ParallelConfig, device: str, local_rank: int, local_size: int) -> World:
    from torch.distributed.device_mesh import init_device_mesh

    ranks = Ranks.current(config.timeout)
    if ranks.world_size == 1:
        return World(ranks, config)
    plan = plan_mesh(config, ranks.world_size, local_size)
    if config.cpu_offload and _device_type(device) == "cpu":
        raise ConfigError("parallel.cpu_offload=true needs an accelerator; this run is on the CPU.")
    shape, names = (plan.copies, plan.parts), ("replicate", "shard")
    if plan.copies == 1:
        shape, names = shape[1:], names[1:]  # type: ignore[assignment]
    mesh = init_device_mesh(_device_type(device), shape, mesh_dim_names=names)
    return World(ranks, config, mesh, local_rank)


def _device_type(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device).type
