"""Which processes hold copies, and which hold parts: pure arithmetic, and its errors."""

from dataclasses import dataclass

from controlllm.common.errors import ConfigError
from controlllm.train.config.parallel_config import ParallelConfig

__all__ = ["MeshPlan", "plan_mesh"]


@dataclass(frozen=True)
class MeshPlan:
    """A grid of processes; neighbours in rank cut matrices together, then hold parts of a copy."""

    copies: int  # how many copies of the weights there are

    parts: int  # processes (or tensor groups) that hold one copy together

    tensor: int = 1  # processes that compute a block together, on the same rows

    @property
    def data_size(self) -> int:
        """How many see rows of their own."""
        return self.copies * self.parts

    @property
    def world_size(self) -> int:
        """All processes."""
        return self.data_size * self.tensor


def plan_mesh(config: ParallelConfig, world_size: int, local_world_size: int) -> MeshPlan:
    """The grid that a config asks for, of so many processes in all and on each machine.

    Raises:
        ConfigError: a size does not divide the world.

    >>> plan_mesh(ParallelConfig(strategy="hsdp"), world_size=24, local_world_size=8)
    MeshPlan(copies=3, parts=8, tensor=1)
    """
    tensor = config.tensor_size
    _require_divisor("tensor_size", tensor, world_size, local_world_size)
    groups = world_size // tensor
    parts = config.shard_size or max(local_world_size // tensor, 1)
    if config.way.has_groups:
        _require_divisor("shard_size", parts, groups, local_world_size)
    return MeshPlan(*config.way.shape(groups, parts), tensor)


def _require_divisor(name: str, size: int, of: int, local_world_size: int) -> None:
    if of % size:
        divisors = [n for n in range(1, of + 1) if of % n == 0]
        raise ConfigError(
            f"parallel.{name}={size} does not divide the {of} processes of the run "
            f"({local_world_size} on each machine); possible: {divisors}."
        )
