"""Settings: their bounds, facts of their fields, and those that are given but would not be read.

Said, so used: a setting that would not be read is an error or a warning with its name.

A value that differs from its default counts as said, unless it is that of a preset laid below.

    RULES = (Rule("kl", lambda run: run.method == "kl", "only method=kl reads it; leave it out"),)
    check_said(run, RULES, below=preset)
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from controlllm.common.errors import ConfigError

__all__ = [
    "LARGEST",
    "LARGEST_SEED",
    "LONGEST_SECONDS",
    "RUNS_CODE",
    "Rule",
    "check_numbers",
    "check_range",
    "check_said",
    "settings_with",
    "value_at",
]


@dataclass(frozen=True)
class Rule:
    """When a setting is read, and what to do where it is not.

    Attributes:
        field: its dotted name below the config; the name of a section means all its settings.
        reads: whether a config reads it.
        remedy: why it is not, or when it is, and what to do: the end of a sentence.
        refuse: whether it is an error to give it where it is not read; else a warning.
    """

    field: str
    reads: Callable[[Any], bool]
    remedy: str
    refuse: bool = True


def check_said(
    config: Any, rules: Sequence[Rule], below: Mapping[str, Any] | None = None, where: str = ""
) -> None:
    """Tell of what is said and not read: what is refused first, then the warnings.

    Args:
        config: a dataclass, whose fields may be dataclasses (sections).
        rules: what to look at; each is looked at by itself.
        below: values of a preset, nested like the config: they are nobody's saying.
        where: dotted name of the config itself, for the messages.

    Raises:
        ConfigError: with the settings, their values and the remedy.
    """
    prefix = f"{where}." if where else ""
    unread = (rule for rule in rules if not rule.reads(config))
    vain = [
        (rule, found) for rule in unread if (found := [*_said(config, rule.field, below or {})])
    ]
    for rule, found in sorted(vain, key=lambda pair: not pair[0].refuse):
        named = ", ".join(f"{prefix}{name}={value!r}" for name, value in found)
        text = f"{named} would not be used: {rule.remedy}."
        if rule.refuse:
            raise ConfigError(text)
        warnings.warn(text, stacklevel=4)


def _said(config: Any, name: str, below: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of that name, and their values, that differ from default and preset."""
    *sections, last = name.split(".")
    for section in sections:
        config, below = getattr(config, section), below.get(section, {})
    value = getattr(config, last)
    if is_dataclass(value):
        inner = below.get(last, {})
        for field in fields(value):
            for setting, said in _said(value, field.name, inner):
                yield f"{name}.{setting}", said
        return
    (field,) = (one for one in fields(config) if one.name == last)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if value != default and not (last in below and below[last] == value):
        yield name, value


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


RUNS_CODE = {"runs_code": True}
"""Metadata of a field that lets somebody's code run: a file may name it, a person consents."""


def settings_with(cls: type, fact: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of a dataclass's settings, sections included, whose metadata hold a fact."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        if is_dataclass(hints[field.name]):
            yield from settings_with(hints[field.name], fact, f"{prefix}{field.name}.")
        elif fact.items() <= field.metadata.items():
            yield prefix + field.name


def value_at(values: Any, name: str) -> Any:
    """The value of a dotted setting in nested mappings; None where there is none."""
    for part in name.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values
