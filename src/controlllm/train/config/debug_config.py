"""What a run shows of itself when something is wrong with it."""

from dataclasses import dataclass

from controlllm.common.errors import ConfigError
from controlllm.common.facts import Read, check_values, setting
from controlllm.common.settings import LONGEST_SECONDS

__all__ = ["DebugConfig"]


@dataclass
class DebugConfig:
    """Profiles, hunts and watchdogs; see docs/observing.md. Nothing here changes results."""

    profile_steps: list[int] | None = None
    """[first, last]: write a trace of these optimizer steps to <output_dir>/profile."""
    profile_ranks: list[int] = setting(
        factory=lambda: [0],
        read=Read(
            lambda run: run.debug.profile_steps is not None or run.debug.memory_snapshot,
            "neither debug.profile_steps nor debug.memory_snapshot is set",
        ),
    )
    """Processes that write one, and memory snapshots; each costs some time."""
    memory_snapshot: bool = False
    """Record a GPU's allocations, and write them to <output_dir>/profile after profile_steps, else
    when the run ends, for lack of memory too."""
    anomaly: bool = False
    """Look at each module's output and gradient; stop at the first that is not finite (slow)."""
    flight_recorder: bool = False
    """Let torch note the last collectives of NCCL, and write them to <output_dir>/flight_recorder
    when one times out."""
    watchdog_seconds: float | None = setting(None, at_most=LONGEST_SECONDS)
    """Report which process hangs where once a phase of a step takes so long; 0 = never; null = half
    of parallel.timeout where several processes train."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        steps = self.profile_steps
        if steps is not None and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
            raise ConfigError(
                f"debug.profile_steps={steps!r}; allowed: [first, last] with 1 <= first <= last, "
                "or null."
            )
        check_values(self, "debug")
        if not self.profile_ranks:
            raise ConfigError(
                f"debug.profile_ranks={self.profile_ranks!r}; allowed: a list of at least one rank."
            )

    def patience(self, world_size: int, timeout: float) -> float | None:
        """Seconds after which the watchdog reports; None without one."""
        if self.watchdog_seconds is None:
            return timeout / 2 if world_size > 1 else None
        return self.watchdog_seconds or None
