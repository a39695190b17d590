"""The ways in which processes share a model, each with all that is known of it.

>>> STRATEGIES.get("hsdp").shape(6, 2)
(3, 2)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from controlllm.common.registry import Registry

__all__ = ["STRATEGIES", "Strategy"]

_FOUR = "tested with 2 and 4 gloo processes; NCCL not run"
_GRID = "tested with 2x2 gloo processes; NCCL not run"
_TWO = "tested with 2 gloo processes; NCCL not run"
_VERSION = "DeepSpeed 0.19.8"


@dataclass(frozen=True)
class Strategy:
    """One way to share a model."""

    backends: Mapping[str, str]
    """`training.backend` -> what is known of the two together; others are refused."""
    shape: Callable[[int, int], tuple[int, int]] = lambda processes, group: (1, processes)
    """(processes, of which so many make one group) -> copies of the model, parts of each."""
    has_groups: bool = False
    """Whether a group may be smaller than all processes (`parallel.shard_size`)."""
    cuts_weights: bool = True  # whether each process holds a part of the weights only
    by_deepspeed: bool = False  # whether DeepSpeed carries it out


STRATEGIES: Registry[Strategy] = Registry("parallel.strategy")
"""Strategies by the name used in the run config."""

for _name, _strategy in {
    "fsdp": Strategy({"native": _FOUR, "hf": _TWO}),
    "hsdp": Strategy(
        {"native": _GRID, "hf": _GRID},
        lambda processes, group: (processes // group, group),
        has_groups=True,
    ),
    "ddp": Strategy(
        {"native": _TWO, "hf": _TWO}, lambda processes, _: (processes, 1), cuts_weights=False
    ),
    "zero2": Strategy({"hf": f"{_TWO}; {_VERSION}"}, cuts_weights=False, by_deepspeed=True),
    "zero3": Strategy({"hf": f"{_FOUR}; {_VERSION}"}, by_deepspeed=True),
}.items():
    STRATEGIES.register(_name)(_strategy)
