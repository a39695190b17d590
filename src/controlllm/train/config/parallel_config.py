"""How the processes of a run share the model."""

from dataclasses import dataclass
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.settings import LONGEST_SECONDS, check_numbers
from controlllm.train.config.strategies import STRATEGIES, Strategy

__all__ = ["ParallelConfig"]

_LEAST = {"shard_size": 1, "tensor_size": 1, "timeout": 1e-12}


@dataclass
class ParallelConfig:
    """How several processes train one model; a single process needs none of it."""

    strategy: str = "fsdp"
    """`fsdp`: each process holds a part of every weight; `hsdp`: so within a group of shard_size,
    and the groups are copies of one another; `ddp`: each process holds all weights; `zero2`,
    `zero3`: by DeepSpeed (training.backend=hf), gradients and moments in parts, or weights, too."""
    shard_size: int | None = None
    """hsdp: processes that hold one copy of the weights together; null = those of one machine."""
    tensor_size: int = 1
    """Processes that compute each block together, its matrices cut among them (tensor parallelism);
    neighbours in rank, best within a machine. They see the same rows."""
    reshard_after_forward: bool = True
    """Give gathered weights back after the forward pass of a block: less memory, gathered twice."""
    prefetch: int = 1
    """Blocks whose weights are gathered ahead, explicitly; 0 = as torch decides by itself."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state in the CPU's memory (accelerators only); under
    zero2 gradients and optimizer state, under zero3 also frozen weights."""
    deepspeed: dict[str, Any] | str | None = None
    """zero2, zero3: settings of DeepSpeed (or its JSON file) laid over those that the run makes,
    such as `{zero_optimization: {zero_hpz_partition_size: 8}}`."""
    timeout: float = 600.0
    """Seconds that one process may keep the others waiting before the run fails."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        strategy = STRATEGIES.get(self.strategy)
        check_numbers(self, "parallel", _LEAST, {"timeout": LONGEST_SECONDS})
        if self.shard_size is not None and not strategy.has_groups:
            raise ConfigError(
                f"parallel.shard_size={self.shard_size!r} is for strategy='hsdp'; "
                f"strategy={self.strategy!r} shards over all processes or none."
            )
        if self.deepspeed is not None and not strategy.by_deepspeed:
            raise ConfigError(
                f"parallel.deepspeed is for strategy='zero2' or 'zero3', not {self.strategy!r}."
            )

    @property
    def way(self) -> Strategy:
        """What is known of the strategy."""
        return STRATEGIES.get(self.strategy)
