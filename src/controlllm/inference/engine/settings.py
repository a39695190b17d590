"""How much an engine takes on."""

from dataclasses import dataclass

from controlllm.common.facts import check_values, setting
from controlllm.common.settings import LONGEST_SECONDS, TINY

__all__ = ["EngineSettings"]


@dataclass
class EngineSettings:
    """How much an engine takes on."""

    max_running: int = setting(4, at_least=1)
    """Requests that are written at the same time, taking turns; each holds a KV cache."""

    max_waiting: int = setting(64, at_least=1)
    """Requests that may wait; the next one is refused."""

    request_seconds: float = setting(600.0, at_least=TINY, at_most=LONGEST_SECONDS)
    """The longest a request may take, waiting included."""

    cache_mib: float = setting(512.0)
    """Memory for the KV caches of finished requests, in MiB; 0 = none is kept."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "limits")
