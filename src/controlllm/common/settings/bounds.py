"""Numbers of settings: finite, and within what can be meant."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from controlllm.common.errors import ConfigError

__all__ = ["LARGEST", "LARGEST_SEED", "LONGEST_SECONDS", "check_numbers", "check_range"]

LARGEST = 2.0**53
"""Beyond it a float cannot tell whole numbers apart; no setting is meant to be so large."""
LONGEST_SECONDS = 1e8
"""Three years: what clocks and sockets of every system can wait."""
LARGEST_SEED = 2**32 - 1
"""NumPy's own bound: beyond it two seeds would be one."""


def check_range(field: str, value: float, low: float, high: float = LARGEST) -> None:
    """Check that `low <= value <= high`, which no `nan` is.

    Raises:
        ConfigError: with the field, the value and the range.
    """
    if not low <= value <= high:
        upper = "" if high == LARGEST and not value > high else f" and at most {_plain(high)}"
        raise ConfigError(
            f"{field}={value!r} is out of range; allowed: at least {_plain(low)}{upper}."
        )


def _plain(number: float) -> str:
    """Whole numbers with all their digits."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def check_numbers(
    config: Any, where: str, least: Mapping[str, float], most: Mapping[str, float] | None = None
) -> None:
    """Check every number in the fields of a dataclass, also those in lists.

    Args:
        config: the dataclass.
        where: its dotted name, for the messages.
        least: the least value of fields for which that is not 0.
        most: the largest value of fields for which that is not `LARGEST`.

    Raises:
        ConfigError: with the first field that is out of its range.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                name = f"{where}.{field.name}" if where else field.name
                low, high = least.get(field.name, 0), (most or {}).get(field.name, LARGEST)
                check_range(name, number, low, high)
