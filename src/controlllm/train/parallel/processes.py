"""Where this process stands in a run, as its launcher says it.

| launcher | variables |
|---|---|
| torchrun, Kubernetes (PyTorchJob), `--nproc` | `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, |
| | `LOCAL_WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT` |
| `srun` | `SLURM_PROCID`, `SLURM_NTASKS`, `SLURM_LOCALID`, `SLURM_NTASKS_PER_NODE`, |
| | `SLURM_STEP_NODELIST` |
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from controlllm.common.errors import ConfigError

__all__ = ["Place", "launched", "place_in"]

PORT = 29500
"""Where rank 0 listens if nobody says so."""


@dataclass(frozen=True)
class Place:
    """This process among those of the run."""

    rank: int
    """Which one, over all machines."""
    world_size: int
    """How many there are."""
    local_rank: int
    """Which one on this machine; also which of its devices."""
    local_world_size: int
    """How many there are on this machine."""
    address: str
    """The machine of rank 0."""
    port: int
    """Where rank 0 listens."""


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started this process as one of several (or as the only one)."""
    return "RANK" in environment or _several_by_slurm(environment)


def place_in(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Where this process stands; None if no launcher started it.

    Raises:
        ConfigError: the launcher's variables are incomplete or no numbers.
    """
    if "RANK" in environment:
        world_size = _number(environment, "WORLD_SIZE")
        return Place(
            rank=_number(environment, "RANK"),
            world_size=world_size,
            local_rank=_number(environment, "LOCAL_RANK", 0),
            local_world_size=_number(environment, "LOCAL_WORLD_SIZE", world_size),
            address=environment.get("MASTER_ADDR", "localhost"),
            port=_number(environment, "MASTER_PORT", PORT),
        )
    if not _several_by_slurm(environment):
        return None
    world_size = _number(environment, "SLURM_NTASKS")
    nodes = _number(environment, "SLURM_STEP_NUM_NODES", 1)
    return Place(
        rank=_number(environment, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_world_size=world_size // nodes,
        address=environment.get("MASTER_ADDR") or first_host(environment),
        # Two jobs of one machine must not meet.
        port=_number(
            environment, "MASTER_PORT", 20_000 + _number(environment, "SLURM_JOB_ID", 0) % 20_000
        ),
    )


def _several_by_slurm(environment: Mapping[str, str]) -> bool:
    """Whether `srun` started several tasks; a shell inside an allocation has no step of its own."""
    return "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1


def first_host(environment: Mapping[str, str]) -> str:
    """The first machine of Slurm's list.

    >>> first_host({"SLURM_STEP_NODELIST": "gpu-a[03-05,9],gpu-b1"})
    'gpu-a03'
    """
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "localhost")
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", hosts)
    if match is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={hosts!r} names no host; set MASTER_ADDR.")
    return match[1] + (match[2] or "")


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name)
    if value is None and default is not None:
        return default
    try:
        return int(value or "")
    except ValueError as error:
        raise ConfigError(
            f"{name}={value!r} is not a number; start the run by torchrun, srun or "
            "`controlllm train --nproc N`, which set it."
        ) from error
