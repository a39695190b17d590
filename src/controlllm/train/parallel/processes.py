"""Where this process stands in a run, as its launcher says it.

| launcher | variables |
|---|---|
| torchrun, `--nproc` | `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`, `MASTER_ADDR`, |
| | `MASTER_PORT` |
| Kubernetes (PyTorchJob), one process a pod | the same without the `LOCAL_` ones |
| `srun` | `SLURM_PROCID`, `SLURM_LOCALID`, `SLURM_NODEID`, `SLURM_STEP_NUM_TASKS`, |
| | `SLURM_STEP_NUM_NODES`, `SLURM_STEP_TASKS_PER_NODE`, `SLURM_STEP_NODELIST` |

torchrun's count before Slurm's. Half of a set is an error: processes that disagree about who they
are would wait for one another.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from controlllm.common.errors import ConfigError

__all__ = ["Place", "first_host", "launched", "place_in"]

PORT = 29500
"""Where rank 0 listens if nobody says so."""
_SLURM_PORTS = range(20_000, 40_000)
_HINT = "start the run by torchrun, srun or `controlllm train --nproc N`, which set them all."


@dataclass(frozen=True)
class Place:
    """This process among those of the run."""

    rank: int  # which one, over all machines
    world_size: int  # how many there are
    local_rank: int  # which one on this machine; also which of its devices
    local_world_size: int  # how many there are on this machine
    address: str  # the machine of rank 0
    port: int  # where rank 0 listens

    def __post_init__(self) -> None:
        """Check that the numbers fit one another (ConfigError)."""
        whole = 0 <= self.rank < self.world_size
        local = 0 <= self.local_rank < self.local_world_size <= self.world_size
        if not (whole and local and 0 < self.port < 65536):
            raise ConfigError(
                f"the launcher's variables contradict each other: rank {self.rank} of "
                f"{self.world_size}, local rank {self.local_rank} of {self.local_world_size}, "
                f"port {self.port}; {_HINT}"
            )


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started this process as one of several (or as the only one)."""
    return _by_torchrun(environment) or _by_srun(environment)


def place_in(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Where this process stands; None if no launcher started it.

    Raises:
        ConfigError: the launcher's variables are incomplete, no numbers, or contradict each other.
    """
    if _by_torchrun(environment):
        return _place_of_torchrun(environment)
    return _place_of_srun(environment) if _by_srun(environment) else None


def first_host(hosts: str) -> str:
    """The first machine of Slurm's list.

    Raises:
        ConfigError: the list names none.

    >>> first_host("gpu-a[03-05,9]-ib,gpu-b1")
    'gpu-a03-ib'
    """
    first = re.match(r"((?:[^\[,]|\[[^\]]*\])+)(?:,|$)", hosts.strip())
    name = "" if first is None else re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[1])
    if not name:
        raise ConfigError(f"SLURM_STEP_NODELIST={hosts!r} names no host; set MASTER_ADDR.")
    return name


def tasks_per_node(counts: str) -> list[int]:
    """Slurm's short form of how many tasks each node has.

    Raises:
        ConfigError: it is not of that form.

    >>> tasks_per_node("4(x2),1")
    [4, 4, 1]
    """
    result: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE={counts!r} is not understood; {_HINT}")
        result += [int(match[1])] * int(match[2] or 1)
    return result


def _by_torchrun(environment: Mapping[str, str]) -> bool:
    """`WORLD_SIZE` alone tells of several processes, too: then the rank is what is missing."""
    return "RANK" in environment or environment.get("WORLD_SIZE", "1") != "1"


def _by_srun(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several tasks of a step; the shell of an allocation has no step."""
    return environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def _place_of_torchrun(environment: Mapping[str, str]) -> Place:
    world_size = _number(environment, "WORLD_SIZE")
    alone = not {"LOCAL_RANK", "LOCAL_WORLD_SIZE"} & environment.keys()
    if world_size > 1 and not environment.get("MASTER_ADDR"):
        raise ConfigError(f"MASTER_ADDR is not set, for {world_size} processes; {_HINT}")
    return Place(
        rank=_number(environment, "RANK"),
        world_size=world_size,
        local_rank=0 if alone else _number(environment, "LOCAL_RANK"),
        local_world_size=1 if alone else _number(environment, "LOCAL_WORLD_SIZE"),
        address=environment.get("MASTER_ADDR", "localhost"),
        port=_number(environment, "MASTER_PORT", PORT),
    )


def _place_of_srun(environment: Mapping[str, str]) -> Place:
    # Two steps that share a machine must not meet.
    step = 31 * _number(environment, "SLURM_JOB_ID", 0) + _number(environment, "SLURM_STEP_ID", 0)
    node = _number(environment, "SLURM_NODEID")
    counts = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    nodes = _number(environment, "SLURM_STEP_NUM_NODES")
    if len(counts) != nodes or not 0 <= node < nodes:
        raise ConfigError(
            f"node {node} of {nodes}, but SLURM_STEP_TASKS_PER_NODE lists {len(counts)}; {_HINT}"
        )
    hosts = environment.get("SLURM_STEP_NODELIST", "")
    return Place(
        rank=_number(environment, "SLURM_PROCID"),
        world_size=_number(environment, "SLURM_STEP_NUM_TASKS"),
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_world_size=counts[node],
        address=environment.get("MASTER_ADDR") or first_host(hosts),
        port=_number(environment, "MASTER_PORT", _SLURM_PORTS[step % len(_SLURM_PORTS)]),
    )


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise ConfigError(f"{name} is not set, though other variables of a launcher are; {_HINT}")
    try:
        return int(value)
    except ValueError as error:
        raise ConfigError(f"{name}={value!r} is not a number; {_HINT}") from error
