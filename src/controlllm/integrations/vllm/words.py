"""What a request may say of alpha and sidecars, and what of it decides a cached prefix.

No vLLM is needed here. A request says it in `SamplingParams(extra_args={"alpha": 0.3})`, over HTTP
in `vllm_xargs`. Where the model has sidecars with names, it also says which:

| sidecar | alpha | who answers |
|---|---|---|
| none | none, or 0 | the base; of an only sidecar that, as it was saved, or at alpha |
| `"maths"` | none, or 0.3 | that one, as it was saved, or at alpha |
| `["maths", "zh"]` | none, or `[0.3, 0.2]` | both, their changes added |
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.registry import check_choice

__all__ = ["ALPHA", "SIDECAR", "alphas_of", "at_rest", "prefix_salt"]

ALPHA, SIDECAR = "alpha", "sidecar"

VLLM_KEYS = ("kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode")
"""What vLLM itself hands through the same dictionary."""


def at_rest(sidecars: Sequence[str]) -> list[float]:
    """The alpha of each sidecar where a request says nothing; NaN is as it was saved.

    Args:
        sidecars: the names; none where the model is one expansion without a name.
    """
    return [0.0] * len(sidecars) if len(sidecars) > 1 else [math.nan]


def alphas_of(extra_args: Mapping[str, Any] | None, sidecars: Sequence[str] = ()) -> list[float]:
    """The alpha of each sidecar for a request; NaN is as it was saved.

    Args:
        extra_args: what the request says.
        sidecars: as in `at_rest`.

    Raises:
        ConfigError: for a word or a name that is not known (with the nearest), a value that is no
            number from 0 to 1, or an alpha of which it is not clear whose it is.
    """
    for key in extra_args or {}:
        if key not in VLLM_KEYS:
            check_choice("a word of extra_args (vllm_xargs)", key, [ALPHA, SIDECAR])
    named, alpha = _said(extra_args)
    if named is None:
        return _unnamed(alpha, sidecars)
    if not sidecars:
        raise ConfigError(f"sidecar={named!r}: this model's has no name; leave the word out.")
    names, alphas = _listed(named), [alpha] if isinstance(named, str) else alpha
    for name in names:
        check_choice("sidecar", name, sidecars)
    if alphas is None:
        alphas = [None] * len(names)
    if not isinstance(alphas, list) or len({*names}) != len(names) or len(names) != len(alphas):
        raise ConfigError(
            f"sidecar={named!r}, alpha={alpha!r}; allowed: a name and a number, or a list of "
            "different names and one of as many numbers."
        )
    chosen = dict(zip(names, map(_checked, alphas), strict=True))
    return [chosen.get(name, 0.0) for name in sidecars]


def prefix_salt(extra_args: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What joins the hash of a request's first block; empty where the request says nothing.

    Keys and values that were computed at one alpha, or by one sidecar, are of no use at another.

    Args:
        extra_args: what the request says, checked.
    """
    named, alpha = _said(extra_args)
    if named is None:
        return () if alpha is None else (f"controlllm alpha {float(alpha)!r}",)
    names = _listed(named)
    alphas = alpha if isinstance(alpha, list) else [alpha] * len(names)
    said = sorted(zip(names, alphas, strict=True), key=lambda pair: pair[0])
    return tuple(
        f"controlllm {name} {None if value is None else float(value)!r}" for name, value in said
    )


def _said(extra_args: Mapping[str, Any] | None) -> tuple[Any, Any]:
    wanted = extra_args or {}
    return wanted.get(SIDECAR), wanted.get(ALPHA)


def _listed(named: Any) -> list[Any]:
    return named if isinstance(named, list) else [named]


def _unnamed(alpha: Any, sidecars: Sequence[str]) -> list[float]:
    """Alphas of a request that names no sidecar."""
    if len(sidecars) < 2:
        return [_checked(alpha)]
    if alpha is not None and _checked(alpha) != 0:
        raise ConfigError(
            f"alpha={alpha!r} does not say whose it is; add sidecar, one of {', '.join(sidecars)}."
        )
    return at_rest(sidecars)


def _checked(alpha: Any) -> float:
    if alpha is None:
        return math.nan
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha={alpha!r}; allowed: a number from 0 (the base) to 1 (the expanded branch), or "
            "none (as it was saved)."
        )
    return float(alpha)
