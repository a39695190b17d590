"""Calibration: turn the dial of an expanded model to the alpha that learns most in the budget."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from torch import nn

from controlllm.common.errors import ModelError
from controlllm.data import Batch
from controlllm.evaluate.forgetting.alphas import DEFAULT_ALPHAS
from controlllm.evaluate.forgetting.blending import blend_sidecars
from controlllm.evaluate.forgetting.dial import (
    Dial,
    DialCurve,
    EvaluationSets,
    trace_curve,
)
from controlllm.evaluate.forgetting.expanded import is_expanded
from controlllm.evaluate.forgetting.losses import evaluate_losses
from controlllm.evaluate.forgetting.reference import Reference

__all__ = ["calibrate"]


def calibrate(
    model: nn.Module,
    learn: Mapping[str, Sequence[Batch]],
    retain: Mapping[str, Sequence[Batch]],
    max_forgetting: float = 0.05,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    refine_steps: int = 2,
) -> DialCurve:
    """Sweep alpha and turn the dial to the setting that learns most within the budget.

    Where alpha is decided for each token, the dial multiplies it: 1 is as it was trained. Setting 0
    (the base: no forgetting) and the trained setting are always measured as well. The chosen
    setting is in force afterwards and stands in the model's config: save the model or its sidecar
    to keep it. After an error the trained setting is in force.

    Of several named sidecars (`load_sidecars`, `expand_beside`) the dials of all are searched, one
    at a time: see `blending`. The alpha of a point is then one for each name.

    Args:
        model: an expanded model.
        learn: held-out batches of the new domain, by name of the set.
        retain: held-out batches of what must not be forgotten, by name of the set.
        max_forgetting: the budget for each retain set, in nats per token.
        alphas: the settings to measure, each in [0, 1].
        refine_steps: how often the gap above the best alpha is halved and measured again.

    Raises:
        ConfigError: if the budget or an alpha cannot be.
        DataError: if there is no learn or no retain set, or one has no target token.
        ModelError: if the model is not expanded.
    """
    if not is_expanded(model):
        raise ModelError(
            f"{type(model).__name__} has no alpha: only an expanded model can be calibrated. "
            "For full tuning use `averaging_curve`."
        )
    expanded: Any = model
    sets = EvaluationSets(learn, retain)
    if getattr(model, "sidecars", ()):
        return blend_sidecars(expanded, sets, max_forgetting, alphas, refine_steps)
    name = "dial" if expanded.has_gates else "alpha"
    dial = Dial(model, expanded.set_alpha, Reference(model), name)
    chosen: float | None = None
    try:
        curve = trace_curve(dial, sets, max_forgetting, [*alphas, None], refine_steps)
        chosen = curve.chosen.alpha
    finally:
        expanded.set_alpha(chosen)
    # The sweep turned the dial: measure the gates at the chosen one, which collapsing them needs.
    if expanded.has_gates and chosen != 0:
        evaluate_losses(model, chain.from_iterable(learn.values()))
    return curve
