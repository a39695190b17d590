"""A gate: what a model must have kept and learned to be shipped, as rules fixed beforehand.

level: 0.95
correction: none
rules:
  - {benchmark: arc_easy, reading: choice, not_below: -0.02}
  - {benchmark: gsm8k, reading: strict, at_least: 0.05}
  - {benchmark: "*", reading: bits_per_byte, not_above: 0.05}
  - {benchmark: gsm8k, share: cut_off, not_above: 0.1}
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from controlllm.common.errors import ConfigError
from controlllm.common.registry import check_choice
from controlllm.common.storage.schema import build
from controlllm.common.text.yamls import MAX_BYTES, parse_yaml
from controlllm.evaluate.items.records import READINGS

__all__ = ["ALL", "SHARES", "Gate", "Rule", "read_gate"]

ALL = "*"
"""As `benchmark` of a rule: every benchmark that has the reading or the share."""
SHARES = ("in_format", "cut_off")
"""Shares of a model's answers that a rule may bound."""
BOUNDS = ("not_below", "at_least", "not_above")
MOST_RULES = 1000


@dataclass(frozen=True)
class Rule:
    """One demand on one number of a benchmark, or of all.

    Attributes:
        benchmark: its name; `*` = each that has the number.
        reading: one of `READINGS`: the rule bounds how far the model is above the base.
        share: one of `SHARES`: the rule bounds the share of the model's own answers.
        suite: where the benchmark is; None where one suite only has it.
        not_below: lowest difference of a rate (-0.02: two points may be lost), or lowest share.
        at_least: lowest gain of a rate (0.05: five points).
        not_above: highest rise of bits per byte, or highest share.
    """

    benchmark: str
    reading: str | None = None
    share: str | None = None
    suite: str | None = None
    not_below: float | None = None
    at_least: float | None = None
    not_above: float | None = None

    @property
    def what(self) -> str:
        """The number that it bounds, by name."""
        return str(self.reading or self.share)

    @property
    def kind(self) -> str:
        """The one of `not_below`, `at_least` and `not_above` that is given."""
        return next(name for name in BOUNDS if getattr(self, name) is not None)

    @property
    def bound(self) -> float:
        """Its value."""
        return float(getattr(self, self.kind))

    def check(self, where: str) -> None:
        """Check that it says one thing that can be judged.

        Raises:
            ConfigError: with the place, what is wrong, and what to write.
        """
        if (self.reading is None) == (self.share is None):
            raise ConfigError(f"{where}: give either reading or share.")
        if self.reading is not None:
            check_choice(f"{where}.reading", self.reading, READINGS)
        else:
            check_choice(f"{where}.share", self.share, SHARES)
        if sum(getattr(self, name) is not None for name in BOUNDS) != 1:
            raise ConfigError(f"{where}: give one bound: not_below, at_least or not_above.")
        if not math.isfinite(self.bound):
            raise ConfigError(f"{where}.{self.kind}={self.bound} is no finite number.")
        self._check_bound(where)

    def _check_bound(self, where: str) -> None:
        named = f"{where}.{self.kind}={self.bound:g}"
        if self.share is not None:
            if self.kind == "at_least":
                raise ConfigError(f"{named}: a share is bounded by not_below or not_above.")
            if not 0 < self.bound < 1:
                raise ConfigError(
                    f"{named} is out of range; allowed: between 0 and 1 (10 % are 0.1). No number "
                    "of items shows that a share is exactly 0 or 1."
                )
        elif not READINGS[self.what]:
            if self.kind != "not_above":
                raise ConfigError(
                    f"{named}: fewer {self.what} are better, so bound their rise by not_above "
                    "(below 0: they must fall)."
                )
        elif self.kind == "not_above":
            raise ConfigError(
                f"{named}: a higher {self.what} is better, so bound a drop by not_below, or ask "
                "for a gain by at_least."
            )
        elif self.kind == "not_below" and not -1 <= self.bound <= 0:
            raise ConfigError(
                f"{named} is out of range; allowed: from -1 to 0 (a drop of two points is -0.02). "
                "A gain is asked for by at_least."
            )
        elif self.kind == "at_least" and not 0 <= self.bound <= 1:
            raise ConfigError(
                f"{named} is out of range; allowed: from 0 to 1 (five points are 0.05). "
                "A drop is allowed by not_below."
            )


@dataclass(frozen=True)
class Gate:
    """The rules, and how sure a verdict must be.

    Attributes:
        rules: all of them must hold.
        level: one-sided confidence of each verdict.
        correction: "none" judges each rule by itself, which is right for "all must hold": a model
            that breaks a rule passes with a probability of 1 - level at most. "holm" bounds the
            probability that any of the single verdicts is wrong.
    """

    rules: tuple[Rule, ...]
    level: float = 0.95
    correction: Literal["none", "holm"] = "none"

    def __post_init__(self) -> None:
        """Check all of it.

        Raises:
            ConfigError: with the rule and what is wrong.
        """
        if not 0.5 < self.level < 1:
            raise ConfigError(
                f"level={self.level} is out of range; allowed: between 0.5 and 1 (0.95 is usual)."
            )
        if not 0 < len(self.rules) <= MOST_RULES:
            raise ConfigError(f"rules has {len(self.rules)} entries; allowed: 1 to {MOST_RULES}.")
        for number, rule in enumerate(self.rules, 1):
            rule.check(f"rule {number}")


def read_gate(path: str | Path) -> Gate:
    """Read a gate from YAML.

    Raises:
        ConfigError: it cannot be read, or a rule cannot be judged; with the file and the rule.
    """
    try:
        with open(path, "rb") as file:
            values = parse_yaml(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read the gate {path}: {error.strerror}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is no gate: it must hold `rules:`, a list of rules.")
    try:
        return build(Gate, values, "gate")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
