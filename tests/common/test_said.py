"""The one rule for settings that nobody reads."""

import warnings
from dataclasses import dataclass, field

import pytest

from controlllm.common.errors import ConfigError
from controlllm.common.settings import Rule, check_said


@dataclass
class Inner:
    path: str  # without a default: always said
    rate: float = 0.5
    names: list[str] = field(default_factory=list)


@dataclass
class Outer:
    kind: str = "a"
    inner: Inner = field(default_factory=lambda: Inner("x"))


RATE = Rule("inner.rate", lambda config: config.kind == "b", "only kind=b reads it; leave it out")


def test_what_is_read_or_default_is_not_told() -> None:
    check_said(Outer(), [RATE])
    check_said(Outer("b", Inner("x", rate=1.0)), [RATE])


def test_what_is_said_in_vain_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^run\.inner\.rate=1\.0 would not be used: only ki"):
        check_said(Outer("a", Inner("x", rate=1.0)), [RATE], where="run")


def test_values_of_a_preset_are_not_said_but_other_values_are() -> None:
    preset = {"inner": {"rate": 1.0}}
    check_said(Outer("a", Inner("x", rate=1.0)), [RATE], preset)
    with pytest.raises(ConfigError, match=r"inner\.rate=2\.0"):
        check_said(Outer("a", Inner("x", rate=2.0)), [RATE], preset)


def test_section_means_all_its_settings_and_errors_come_before_warnings() -> None:
    section = Rule("inner", lambda config: False, "nothing reads it", refuse=False)
    config = Outer("a", Inner("x", 1.0, ["n"]))
    with pytest.warns(
        UserWarning, match=r"inner\.path='x', inner\.rate=1\.0, inner\.names=\['n'\]"
    ):
        check_said(config, [section])
    with warnings.catch_warnings(), pytest.raises(ConfigError):
        warnings.simplefilter("error")
        check_said(config, [section, RATE])
