"""Said, so used: which settings of an expansion are read, depending on the others.

A value that differs from its default counts as said. `mean_alpha` is measured, not said; all that
is not in the table is always read.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from controlllm.common.settings import Rule, check_said
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.registries import INTERPOLATORS

__all__ = ["check_settings", "stands_at_zero", "trains_interpolators", "without_unread"]


def _joins(config: ExpansionConfig) -> bool:
    return config.structure != "stack"


def _compares(config: ExpansionConfig) -> bool:
    return _joins(config) and config.divergence != "none"


def _has_constants(config: ExpansionConfig) -> bool:
    gated = not INTERPOLATORS.get(config.interpolator).constant
    return config.expand_ends or (_joins(config) and not gated)


def _pulls(config: ExpansionConfig) -> bool:
    return _compares(config) and config.divergence_weight != 0


def _uses_interpolator(config: ExpansionConfig) -> bool:
    if not INTERPOLATORS.get(config.interpolator).needs_divergence:
        return True
    return _pulls(config) and config.divergence != "attention"


_STACK = "with structure='stack' a copy runs after its block, and nothing is joined or compared"
_NONE = "there is no divergence (divergence='none', or structure='stack')"

RULES = (
    Rule("interpolator", _joins, f"{_STACK}; leave it out"),
    Rule(
        "interpolator",
        _uses_interpolator,
        "it is lerp but for what a divergence of hidden states compares, and there is none; take "
        "'lerp'",
    ),
    Rule("divergence", lambda c: _joins(c) or c.divergence == "none", f"{_STACK}; leave it out"),
    Rule("relaxed_norm", _joins, f"{_STACK}; leave it out"),
    Rule("divergence_weight", _compares, f"{_NONE}; leave it out"),
    Rule("divergence_tokens", _compares, f"{_NONE}; leave it out"),
    Rule("detach_pretrained", _pulls, f"{_NONE}, or its weight is 0; leave it out"),
    Rule(
        "alpha",
        lambda c: _joins(c) or c.expand_ends,
        "a stacked copy has no alpha but the dial; leave it out",
    ),
    Rule(
        "train_alpha",
        _has_constants,
        "no constant alpha is there to be trained, and token gates always train; leave it out",
    ),
    Rule(
        "residual_projections",
        lambda c: c.structure != "concat",
        "only stacked copies (structure='stack' or 'hybrid') start at zero; leave it out",
    ),
)


def check_settings(
    config: ExpansionConfig, below: Mapping[str, Any] | None = None, where: str = ""
) -> None:
    """Refuse settings that are given but would not be used (ConfigError)."""
    check_said(config, RULES, below, where)


def without_unread(config: ExpansionConfig) -> ExpansionConfig:
    """The same expansion, with the defaults of what is not read (a preset may have set it)."""
    default = ExpansionConfig()
    unread: dict[str, Any] = {
        rule.field: getattr(default, rule.field) for rule in RULES if not rule.reads(config)
    }
    return replace(config, **unread)


def trains_interpolators(config: ExpansionConfig) -> bool:
    """Whether any interpolator trains: token gates, maps, or constants with `train_alpha`."""
    always = _joins(config) and INTERPOLATORS.get(config.interpolator).trains
    return always or (config.train_alpha and _has_constants(config))


def stands_at_zero(config: ExpansionConfig) -> bool:
    """Whether the copies have weight 0: the output is the base's, and nothing trains."""
    if isinstance(config.dial, int | float):
        return config.dial == 0
    return _joins(config) and config.alpha == 0 and not any((config.dial or {}).values())
