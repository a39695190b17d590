"""The facts of a setting are said once, at its field."""

from dataclasses import dataclass
from typing import Any

import pytest

from controlllm.common.errors import ConfigError
from controlllm.common.facts import (
    Read,
    check_values,
    describe_facts,
    rules_of,
    setting,
    settings_of,
)
from controlllm.common.settings import TINY, check_said, settings_with


@dataclass
class Section:
    """A section."""

    kind: str = setting("a", choices=lambda: ["b", "a"])
    share: float = setting(0.5, at_least=TINY, at_most=1)
    sizes: list[int] = setting(factory=list, at_least=2, may_change=True)
    free: float = setting(0.0, at_most=float("inf"))
    only_b: int = setting(0, read=Read(lambda c: c.section.kind == "b", "take b", refuse=True))


@dataclass
class Config:
    """A config."""

    section: Section = setting(factory=Section)
    free: Section = setting(factory=Section, may_change=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "c"}, "section.kind='c' is not known; allowed: a, b"),
        ({"share": 0.0}, "section.share=0.0 is out of range"),
        (
            {"share": 1.5},
            "section.share=1.5 is out of range; allowed: above 0 and at most 1",
        ),
        ({"share": float("nan")}, "section.share=nan is out of range"),
        ({"sizes": [3, 1]}, "section.sizes=1 is out of range; allowed: at least 2"),
    ],
)
def test_values_are_checked_by_the_facts(values: dict[str, Any], message: str) -> None:
    check_values(Section(), "section")
    with pytest.raises(ConfigError) as error:
        check_values(Section(**values), "section")
    assert str(error.value).startswith(message)


def test_what_is_not_read_is_refused_by_the_rule_at_the_field() -> None:
    rules = list(rules_of(Config))
    assert [rule.field for rule in rules] == ["section.only_b", "free.only_b"]
    check_said(Config(section=Section(kind="b", only_b=3)), rules)
    with pytest.raises(ConfigError, match=r"section.only_b=3 would not be used: take b\."):
        check_said(Config(section=Section(only_b=3)), rules)


def test_what_may_change_is_a_setting_or_a_whole_section() -> None:
    assert list(settings_with(Config, {"may_change": True})) == ["section.sizes", "free"]


def test_facts_are_told() -> None:
    told = {name: describe_facts(field) for name, field in settings_of(Config)}
    assert told["section.kind"] == "One of a, b."
    assert told["section.free"] == ""
    assert told["section.share"] == "Above 0. At most 1."
    assert told["section.sizes"] == "At least 2. May change when a run goes on."
