"""Said, so used: a setting that is given and would not be read is refused, or warned of, by name.

A value that differs from its default counts as said, unless it is that of a preset laid below.

    RULES = (Rule("kl", lambda run: run.method == "kl", "it is of method=kl; leave it out"),)
    check_said(run, RULES, below=preset)
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

from controlllm.common.errors import ConfigError

__all__ = ["Rule", "check_said"]


@dataclass(frozen=True)
class Rule:
    """When a setting is read, and what to do where it is not.

    Attributes:
        field: its dotted name below the config; the name of a section means all its settings.
        reads: whether a config reads it.
        remedy: why it is not, or when it is, and what to do: the end of a sentence.
        refuse: whether it is an error to say it in vain; else it is warned of.
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
    vain = [(rule, found) for rule in rules if (found := _in_vain(config, rule, below or {}))]
    for rule, found in sorted(vain, key=lambda pair: not pair[0].refuse):
        named = ", ".join(f"{prefix}{name}={value!r}" for name, value in found)
        text = f"{named} would not be used: {rule.remedy}."
        if rule.refuse:
            raise ConfigError(text)
        warnings.warn(text, stacklevel=4)


def _in_vain(config: Any, rule: Rule, below: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [] if rule.reads(config) else list(_said(config, rule.field, below))


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
    if value != _default(field) and not (last in below and below[last] == value):
        yield name, value


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
