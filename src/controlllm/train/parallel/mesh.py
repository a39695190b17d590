"""Which processes hold copies, and which hold parts: pure arithmetic, and its errors."""

from dataclasses import dataclass

from controlllm.common.errors import ConfigError
from controlllm.train.parallel_config import ParallelConfig

__all__ = ["MeshPlan", "plan_mesh"]


@dataclass(frozen=True)
class MeshPlan:
    """A grid of processes; neighbours in rank hold the parts of one copy."""

    copies: int
    """How many copies of the weights there are."""

    parts: int
    """Processes that hold one copy together."""

    @property
    def world_size(self) -> int:
        """All processes."""
        return self.copies * self.parts


def plan_mesh(config: ParallelConfig, world_size: int, local_world_size: int) -> MeshPlan:
    """The grid that a config asks for.

    Args:
        config: strategy and shard size.
        world_size: processes of the run.
        local_world_size: processes on each machine.

    Raises:
        ConfigError: the shard size does not divide the world.

    >>> plan_mesh(ParallelConfig(strategy="hsdp"), world_size=24, local_world_size=8)
    MeshPlan(copies=3, parts=8)
    """
    if config.strategy == "ddp":
        return MeshPlan(world_size, 1)
    if config.strategy == "fsdp":
        return MeshPlan(1, world_size)
    parts = config.shard_size or local_world_size
    if world_size % parts:
        divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
        raise ConfigError(
            f"parallel.shard_size={parts} does not divide the {world_size} processes of the run "
            f"({local_world_size} on each machine); possible: {divisors}."
        )
    return MeshPlan(world_size // parts, parts)
