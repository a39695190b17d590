"""What a request may say of alpha, and what of it decides a cached prefix. No vLLM needed.

A request says it in `SamplingParams(extra_args={"alpha": 0.3})`, over HTTP in `vllm_xargs`.
"""

import math
from collections.abc import Mapping
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.registry import check_choice

__all__ = ["KEY", "alpha_of", "prefix_salt"]

KEY = "alpha"

VLLM_KEYS = ("kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode")
"""What vLLM itself hands through the same dictionary."""


def alpha_of(extra_args: Mapping[str, Any] | None) -> float:
    """The alpha of a request; NaN where it says none (as trained).

    Raises:
        ConfigError: for a word that is not known (with the nearest), or a value that is no number
            from 0 to 1.
    """
    wanted = extra_args or {}
    for key in wanted:
        if key not in VLLM_KEYS:
            check_choice("a word of extra_args (vllm_xargs)", key, [KEY])
    alpha = wanted.get(KEY)
    if alpha is None:
        return math.nan
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha={alpha!r}; allowed: a number from 0 (the base) to 1 (the expanded branch), or "
            "none (as trained)."
        )
    return float(alpha)


def prefix_salt(extra_args: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What joins the hash of a request's first block; empty where the request says no alpha.

    Keys and values that were computed at one alpha are of no use at another.
    """
    alpha = (extra_args or {}).get(KEY)
    return () if alpha is None else (f"controlllm alpha {float(alpha)!r}",)
