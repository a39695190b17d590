"""The facts of a setting stand at its field, and all checks are derived from them.

    @dataclass
    class LoopConfig:
        schedule: str = setting("cosine", choices=SCHEDULES.names)
        save_steps: int = setting(500, at_least=1, may_change=True)
        gamma: float = setting(0.1, read=Read(lambda c: c.schedule == "step", "only step reads it"))

        def __post_init__(self) -> None:
            check_values(self, "loop")
            check_said(self, rules_of(LoopConfig))

`--help`, the rule for resuming and docs/support.md are made of the same facts.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from controlllm.common.registry import check_choice
from controlllm.common.settings import (
    LARGEST,
    LONGEST_SECONDS,
    TINY,
    Rule,
    check_range,
    plain_number,
    walk_settings,
)

__all__ = [
    "Read",
    "check_values",
    "describe_facts",
    "rules_of",
    "setting",
    "settings_of",
]


@dataclass(frozen=True)
class Read:
    """When a setting is read, as a `Rule` says it; `when` gets the outermost config."""

    when: Callable[[Any], bool]
    remedy: str
    refuse: bool = False


def setting(
    default: Any = MISSING,
    *,
    factory: Any = MISSING,
    at_least: float = 0,
    at_most: float = LARGEST,
    choices: Iterable[str] | Callable[[], Iterable[str]] = (),
    may_change: bool = False,
    read: Read | None = None,
) -> Any:
    """A field of a config dataclass, with what is known of it.

    Args:
        default: its default.
        factory: makes the default, instead.
        at_least: the least value of its numbers, those in a list too.
        at_most: the largest one.
        choices: what its texts may be, those in a list too; a function where names can be added.
        may_change: whether a run that goes on may have another value of it than before. Of a
            section: of all its settings.
        read: when it is read; None = always.
    """
    facts: dict[str, Any] = {"at_least": at_least, "at_most": at_most, "choices": choices}
    facts |= {"may_change": may_change, "read": read}
    return field(default=default, default_factory=factory, metadata=facts)


def check_values(config: Any, where: str) -> None:
    """Check every value of a dataclass, called `where`, by the facts of its fields (`setting`).

    Raises:
        ConfigError: with the first field whose number is out of its range, or whose text is none of
            its choices.
    """
    for one in fields(config):
        value, name = getattr(config, one.name), f"{where}.{one.name}" if where else one.name
        choices = _allowed(one)
        for item in value if isinstance(value, list | dict) else [value]:
            if isinstance(item, int | float) and not isinstance(item, bool):
                low, high = one.metadata.get("at_least", 0), one.metadata.get("at_most", LARGEST)
                check_range(name, item, low, high)
            elif choices and item is not None:
                # Where a registry is asked, users' own code may add to it.
                check_choice(name, item, choices, callable(one.metadata["choices"]))


def describe_facts(one: Any) -> str:
    """What may be said of a dataclass's field, to stand behind its documentation."""
    facts, told = one.metadata, []
    if choices := _allowed(one):
        told.append(f"One of {', '.join(choices)}.")
    low, high = facts.get("at_least", 0), facts.get("at_most", LARGEST)
    if low == TINY:
        told.append("Above 0.")
    elif low > 0:
        told.append(f"At least {plain_number(low)}.")
    if high < LARGEST and high != LONGEST_SECONDS:
        told.append(f"At most {plain_number(high)}.")
    if facts.get("may_change"):
        told.append("May change when a run goes on.")
    return " ".join(told)


def settings_of(cls: type) -> Iterator[tuple[str, Any]]:
    """Dotted names and fields of a dataclass's settings, those of its sections too."""
    return ((name, one) for name, one, is_section in walk_settings(cls) if not is_section)


def _allowed(one: Any) -> list[str]:
    """What the texts of a dataclass's field may be, sorted; empty = anything."""
    choices = one.metadata.get("choices", ())
    return sorted(choices() if callable(choices) else choices)


def rules_of(cls: type) -> Iterator[Rule]:
    """When the settings and sections of a dataclass are read, of those that are not always."""
    for name, one, _ in walk_settings(cls):
        if (read := one.metadata.get("read")) is not None:
            yield Rule(name, read.when, read.remedy, read.refuse)
