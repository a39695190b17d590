"""Which settings of a run are read when: what is said and not read is refused, or warned of.

When each is read stands at its field (`common.facts.setting`).

Refused when the config is made: settings whose neglect would make it another run, or break a
promise. Warned of as training begins: settings of a part that is switched off, since one file may
serve for several methods and places.
"""

from functools import cache
from typing import Any

from controlllm.common.facts import rules_of
from controlllm.common.settings import Rule, check_said
from controlllm.train.config.presets import PRESETS

__all__ = ["refuse_unread", "rules_of_runs", "warn_of_unread"]


@cache
def rules_of_runs(cls: type) -> tuple[Rule, ...]:
    """All rules of a class of run configs: when each of its settings is read."""
    measured = (
        Rule(
            f"data.{name}",
            lambda run: bool(run.data.learn or run.data.retain),
            "data.learn and data.retain name no set",
            False,
        )
        for name in ("max_eval_samples", "max_eval_tokens")
    )
    return (*rules_of(cls), *measured)


_ALONE = Rule(
    "parallel",
    # DeepSpeed holds even a single process's moments and weights.
    lambda run: run.parallel.way.by_deepspeed,
    "a run of one process shares its model with no other",
    False,
)


def refuse_unread(run: Any) -> None:
    """Check that nothing is given that the run would not read, and that must not be ignored.

    Raises:
        ConfigError: with the setting, its value, and what to do.
    """
    rules = (rule for rule in rules_of_runs(run.__class__) if rule.refuse)
    check_said(run, rules, PRESETS.get(run.preset, {}))


def warn_of_unread(run: Any, processes: int) -> None:
    """Warn of settings that are given, and that the run of so many processes does not read."""
    rules = [rule for rule in rules_of_runs(run.__class__) if not rule.refuse]
    check_said(run, [*rules, _ALONE] if processes == 1 else rules, PRESETS.get(run.preset, {}))
