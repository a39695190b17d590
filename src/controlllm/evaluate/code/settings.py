"""How much a program under test may use, and how programs are run."""

import os
from dataclasses import dataclass

from controlllm.common.errors import ConfigError

__all__ = ["SandboxSettings"]


@dataclass(frozen=True)
class SandboxSettings:
    """Bounds of each program.

    Raises:
        ConfigError: a number that cannot work.
    """

    memory: int = 1 << 30
    """Bytes of address space, of the solution and of its tests each."""
    seconds: float = 5.0
    """Time of a problem whose reference is quicker than this, or that has none."""
    factor: float = 10.0
    """A solution may take this many times as long as the problem's reference."""
    output: int = 1 << 16
    """Bytes of what a program prints that are kept: the last ones."""
    disk: int = 64 << 20
    """Bytes that it may write to its own folder."""
    processes: int = 16
    """Threads it may have at once; other processes it never gets."""
    jobs: int = 0
    """Programs at the same time; 0 = one per processor."""

    def __post_init__(self) -> None:
        least = {"memory": 64 << 20, "output": 1, "disk": 1 << 16, "processes": 1, "jobs": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"sandbox {name}={getattr(self, name)}: at least {value:,}")
        if not (0 < self.seconds < float("inf") and 1 <= self.factor < float("inf")):
            raise ConfigError(
                f"sandbox seconds={self.seconds}, factor={self.factor}: seconds must be above 0, "
                "the factor at least 1"
            )

    @property
    def workers(self) -> int:
        """How many programs run at the same time."""
        return self.jobs or len(os.sched_getaffinity(0))
