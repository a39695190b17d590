"""How the processes of a run share the model."""

from dataclasses import dataclass
from typing import Any

from controlllm.common.facts import Read, check_values, setting
from controlllm.common.settings import LONGEST_SECONDS, TINY
from controlllm.train.config.strategies import STRATEGIES, Strategy

__all__ = ["ParallelConfig"]

_BY_TORCH = Read(
    lambda run: not run.parallel.way.by_deepspeed,
    "DeepSpeed gathers by settings of its own (parallel.deepspeed)",
)


@dataclass
class ParallelConfig:
    """How several processes train one model; a single process needs none of it."""

    strategy: str = setting("fsdp", choices=STRATEGIES.names)
    """`fsdp`: each process holds a part of every weight; `hsdp`: so within a group of shard_size,
    and the groups are copies of one another; `ddp`: each process holds all weights; `zero2`,
    `zero3`: by DeepSpeed (training.backend=hf), gradients and moments in parts, or weights, too."""
    shard_size: int | None = setting(
        None,
        at_least=1,
        read=Read(
            lambda run: run.parallel.way.has_groups,
            "only parallel.strategy=hsdp has groups of processes; set that, or leave it out",
            refuse=True,
        ),
    )
    """hsdp: processes that hold one copy of the weights together; null = those of one machine."""
    tensor_size: int = setting(1, at_least=1)
    """Processes that compute each block together, its matrices cut among them (tensor parallelism);
    neighbours in rank, best within a machine. They see the same rows."""
    reshard_after_forward: bool = setting(True, read=_BY_TORCH)
    """Give gathered weights back after the forward pass of a block: less memory, gathered twice."""
    prefetch: int = setting(1, read=_BY_TORCH)
    """Blocks whose weights are gathered ahead, explicitly; 0 = as torch decides by itself."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state in the CPU's memory (accelerators only); under
    zero2 gradients and optimizer state, under zero3 also frozen weights."""
    deepspeed: dict[str, Any] | str | None = setting(
        None,
        read=Read(
            lambda run: run.parallel.way.by_deepspeed,
            "only parallel.strategy=zero2 and zero3 read it; set one of them, or leave it out",
            refuse=True,
        ),
    )
    """zero2, zero3: settings of DeepSpeed (or its JSON file) laid over those that the run makes,
    such as `{zero_optimization: {zero_hpz_partition_size: 8}}`."""
    timeout: float = setting(600.0, at_least=TINY, at_most=LONGEST_SECONDS)
    """Seconds that one process may keep the others waiting before the run fails. For text that the
    base writes before training (`rehearsal`, `own_text`) they wait as long as it takes."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "parallel")

    @property
    def way(self) -> Strategy:
        """The facts of the strategy."""
        return STRATEGIES.get(self.strategy)
