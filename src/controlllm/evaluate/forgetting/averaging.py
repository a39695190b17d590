"""Full tuning's own dial: weights averaged between the base and the tuned model."""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from controlllm.common.errors import ModelError
from controlllm.data import Batch
from controlllm.evaluate.forgetting.alphas import DEFAULT_ALPHAS
from controlllm.evaluate.forgetting.dial import (
    Dial,
    DialCurve,
    EvaluationSets,
    trace_curve,
)
from controlllm.evaluate.forgetting.reference import Reference

__all__ = ["average_weights", "averager", "averaging_curve"]


def averaging_curve(
    models: tuple[nn.Module, nn.Module],
    learn: Mapping[str, Sequence[Batch]],
    retain: Mapping[str, Sequence[Batch]],
    max_forgetting: float = 0.05,
    weights: Sequence[float] = DEFAULT_ALPHAS,
    refine_steps: int = 2,
) -> DialCurve:
    """The curve of (1 - w) base + w tuned, measured as `calibrate` measures an expanded model.

    Neither model is changed; a third one of the same size is held meanwhile. Put the chosen
    weight to use with `average_weights`.

    `models` is (base, tuned); `weights` are those of the tuned model, the rest is as in
    `calibrate`.

    Raises:
        ConfigError: if the budget or a weight cannot be.
        DataError: if there is no learn or no retain set, or one has no target token.
        ModelError: if the two models do not have the same parameters.
    """
    base, tuned = models
    mixed = average_weights(base, tuned, 1.0)
    turn = averager(base, tuned, mixed)
    dial = Dial(mixed, turn, Reference(mixed, copy=base), "weight of the tuned model")
    return trace_curve(dial, EvaluationSets(learn, retain), max_forgetting, weights, refine_steps)


def average_weights(base: nn.Module, tuned: nn.Module, weight: float) -> nn.Module:
    """A new model with (1 - weight) base + weight tuned; weight 0 and 1 give them exactly.

    Raises:
        ModelError: if the two models do not have the same parameters.
    """
    mixed = copy.deepcopy(tuned)
    averager(base, tuned, mixed)(weight)
    return mixed


def averager(base: nn.Module, tuned: nn.Module, mixed: nn.Module) -> Callable[[float | None], None]:
    """What sets the parameters of `mixed` between those of the others; None is the tuned model."""
    named = [dict(model.named_parameters()) for model in (base, tuned, mixed)]
    shapes = [{name: parameter.shape for name, parameter in each.items()} for each in named]
    if shapes[0] != shapes[1]:
        differing = sorted(
            set(shapes[0].items()) ^ set(shapes[1].items()), key=lambda item: item[0]
        )
        raise ModelError(
            "base and tuned model cannot be averaged: their parameters differ, first at "
            f"{differing[0][0]!r}. Give the base that the tuned model was trained from."
        )

    @torch.no_grad()
    def set_weight(weight: float | None) -> None:
        for name, target in named[2].items():
            # A base in few bits may have been tuned in float32.
            start, end = named[0][name].to(target.device, target.dtype), named[1][name]
            target.copy_(torch.lerp(start, end, 1.0 if weight is None else weight))

    return set_weight
