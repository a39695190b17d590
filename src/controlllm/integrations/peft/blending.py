"""Weighted means of adapters, and what is looked at before weights are written."""

from collections.abc import Sequence

import torch
from torch import Tensor

from controlllm.common.errors import ConfigError, ModelError
from controlllm.expansion.merge.collapsing import interpolate
from controlllm.integrations.peft.adapter import Adapter

__all__ = ["blend", "check_finite", "check_weights"]


def check_weights(adapters: Sequence[str], weights: Sequence[float]) -> None:
    """Check what each adapter is to count in a blend.

    Raises:
        ConfigError: if there is not one weight for each, or they make no mean.
    """
    if not adapters or len(adapters) != len(weights):
        raise ConfigError(
            f"weights={list(weights)} for adapters {list(adapters)}; give one for each."
        )
    if any(not 0 <= weight <= 1 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
        raise ConfigError(
            f"weights={list(weights)}; allowed: numbers from 0 to 1 with the sum 1, since whole "
            "blocks are blended and not differences from the base."
        )


@torch.no_grad()
def blend(
    target: dict[str, Tensor], sources: list[dict[str, Tensor]], weights: Sequence[float]
) -> None:
    """Write a weighted mean of tensors into others, by interpolating one after the other.

    Args:
        target: the tensors to write to, by name.
        sources: what is blended, by the same names.
        weights: what each source counts; they pass `check_weights`.
    """
    counting = [(source, w) for source, w in zip(sources, weights, strict=True) if w > 0]
    for name, tensor in target.items():
        mean, total = counting[0][0][name], counting[0][1]
        for source, weight in counting[1:]:
            total += weight
            mean = interpolate(mean, source[name], weight / total)
        tensor.copy_(mean)


def check_finite(adapter: Adapter) -> None:
    """Check that an adapter can be folded into a base without spoiling it.

    Raises:
        ModelError: if one of its values is not finite.
    """
    # A constant alpha of 0 or 1 is an infinite logit, and meant so.
    for name, tensor in adapter.tensors().items():
        if not name.endswith(".logit") and not bool(tensor.isfinite().all()):
            raise ModelError(f"{name} has values that are not finite; the base stays as it was.")
