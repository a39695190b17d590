"""What a dial may be asked: settings and a budget, checked before anything is loaded."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from controlllm.common.errors import ConfigError

__all__ = ["DEFAULT_ALPHAS", "check_budget", "check_settings", "told_setting"]

DEFAULT_ALPHAS = tuple(step / 10 for step in range(11))


def check_budget(max_forgetting: float) -> None:
    """Check that a budget of forgetting is finite and not negative (ConfigError)."""
    if not (math.isfinite(max_forgetting) and max_forgetting >= 0):
        raise ConfigError(
            f"max_forgetting={max_forgetting!r} must be a finite number of nats per token, "
            "0 or more; 0.05 is a common budget."
        )


def check_settings(name: str, settings: Sequence[float | None]) -> None:
    """Check that settings are from 0 to 1 (ConfigError)."""
    wrong = [s for s in settings if s is not None and not 0 <= s <= 1]
    if wrong:
        raise ConfigError(f"{name}={wrong[0]!r} is outside [0, 1].")


def told_setting(alpha: Any) -> str:
    """A setting of the dial, or of several by name, as text; None is as trained."""
    if isinstance(alpha, Mapping):
        return ", ".join(f"{name} {told_setting(one)}" for name, one in alpha.items())
    return "trained" if alpha is None else f"{alpha:g}"
