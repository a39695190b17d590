"""Settings: their bounds, facts of their fields, and those that are given but would not be read.

Said, so used: a setting that would not be read is an error or a warning with its name.

A value that differs from its default counts as said, unless it is that of a preset laid below.

    RULES = (Rule("kl", lambda run: run.method == "kl", "only method=kl reads it; leave it out"),)
    check_said(run, RULES, below=preset)
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from controlllm.common.errors import ConfigError
from controlllm.common.registry import nearest_name

__all__ = [
    "LARGEST",
    "LARGEST_SEED",
    "LONGEST_SECONDS",
    "RUNS_CODE",
    "TINY",
    "Rule",
    "check_range",
    "check_said",
    "dataclass_in",
    "near_setting",
    "plain_number",
    "require_settings",
    "setting_names",
    "settings_with",
    "value_at",
    "walk_settings",
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
    config: Any, rules: Iterable[Rule], below: Mapping[str, Any] | None = None, where: str = ""
) -> None:
    """Report settings that are given but would not be read: errors first, then warnings.

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
TINY = 1e-12
"""The least value of a number that must be above 0."""
LONGEST_SECONDS = 1e8
"""Three years: what clocks and sockets of every system can wait."""
LARGEST_SEED = 2**32 - 1
"""NumPy's own bound: beyond it two seeds would be one."""


def check_range(field: str, value: float, low: float, high: float = LARGEST) -> None:
    """Check that `low <= value <= high`, which no `nan` is (ConfigError)."""
    if not low <= value <= high:
        upper = "" if high >= LARGEST and not value > high else f" and at most {plain_number(high)}"
        lower = "above 0" if low == TINY else f"at least {plain_number(low)}"
        raise ConfigError(f"{field}={value!r} is out of range; allowed: {lower}{upper}.")


def plain_number(number: float) -> str:
    """Whole numbers with all their digits."""
    return str(int(number)) if number == int(number) else f"{number:g}"


RUNS_CODE = {"runs_code": True}
"""Metadata of a field that lets somebody's code run: a file may name it, a person consents."""


def walk_settings(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Dotted name and field of each setting and section of a dataclass; whether it is a section."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        section = hints[field.name] if is_dataclass(hints[field.name]) else None
        yield prefix + field.name, field, section is not None
        if section is not None:
            yield from walk_settings(section, f"{prefix}{field.name}.")


def settings_with(cls: type, fact: Mapping[str, Any]) -> list[str]:
    """Dotted names of a dataclass's settings and whole sections whose metadata hold a fact."""
    found: list[str] = []
    for name, field, _ in walk_settings(cls):
        inside = any(name.startswith(f"{section}.") for section in found)
        if fact.items() <= field.metadata.items() and not inside:
            found.append(name)
    return found


def value_at(values: Any, name: str) -> Any:
    """The value of a dotted setting in nested mappings; None where there is none."""
    for part in name.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def setting_names(cls: type, prefix: str = "") -> set[str]:
    """Dotted names of all settings: sections, and fields of what lists hold, included."""
    names = set()
    for name, hint in get_type_hints(cls).items():
        names.add(prefix + name)
        inner = dataclass_in(hint)
        if inner is not None:
            names |= setting_names(inner, f"{prefix}{name}.")
    return names


def dataclass_in(hint: Any) -> type | None:
    """The dataclass that a hint is or contains (`list[SourceConfig]`), if any."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return next(filter(None, (dataclass_in(inner) for inner in get_args(hint))), None)


def require_settings(cls: type, values: Mapping[str, Any], where: str = "") -> None:
    """Check that all names in nested values, read from `where`, are settings of a dataclass.

    Raises:
        ConfigError: with the first that is not, and the section that has such a setting, or the
            nearest name.
    """
    _require_settings(cls, values, f"{where}: " if where else "", sorted(setting_names(cls)), "")


def _require_settings(
    cls: type, values: Mapping[str, Any], begin: str, names: Sequence[str], prefix: str
) -> None:
    hints = get_type_hints(cls)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise ConfigError(f"{begin}{name} is not a setting.{near_setting(name, names)}")
        inner = dataclass_in(hints[key])
        items = {name: value}
        if isinstance(value, list):
            items = {f"{name}[{i}]": item for i, item in enumerate(value)}
        for where, item in items.items():
            if inner is not None and isinstance(item, Mapping):
                _require_settings(inner, item, begin, names, f"{where}.")


_ELSEWHERE = {
    "mixed_precision": "bf16",
    "fp16": "bf16",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "max_seq_length": "max_length",
}
"""What other trainers call our settings."""


def near_setting(name: str, names: Sequence[str], mark: str = "") -> str:
    """What to write instead of a wrong dotted name, as a sentence that begins with a space.

    A setting of that name in another section comes first, or of what other tools call by it, then
    the most similar one of this section, then that of all.

    >>> near_setting("training.logging_steps", ["logging.logging_steps", "training.eval_steps"])
    ' Did you mean logging.logging_steps?'
    >>> near_setting("training.mixed_precision", ["training.bf16", "data.mixed_training"])
    ' Did you mean training.bf16?'
    """
    name = re.sub(r"\[\d+\]", "", name)  # an item of a list
    last = name.rpartition(".")[2]
    wanted = {last, _ELSEWHERE.get(last)}
    elsewhere = [known for known in names if known.rpartition(".")[2] in wanted]
    if elsewhere:
        return f" Did you mean {' or '.join(mark + known for known in elsewhere[:3])}?"
    section = name.rpartition(".")[0]
    for some in ([known for known in names if known.rpartition(".")[0] == section], names):
        leaves = {known.rpartition(".")[2]: known for known in some}
        if found := leaves.get(nearest_name(last, leaves) or ""):
            return f" Did you mean {mark}{found}?"
    return " See --help for all of them."
