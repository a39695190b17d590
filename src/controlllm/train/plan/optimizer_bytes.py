"""Bytes of an optimizer's state, on a device and in a checkpoint."""

from dataclasses import dataclass

from torch import Tensor

from controlllm.common.registry import check_choice
from controlllm.train.step.low_bit import LOW_BIT, block_size

__all__ = ["StateBytes", "optimizer_bytes"]

_STEP, _SCALE = 4, 4


@dataclass(frozen=True)
class StateBytes:
    """What is kept of one parameter: two moments and the step."""

    memory: int
    """On the process that holds most."""
    saved: int
    """In a checkpoint, of all processes together."""


def optimizer_bytes(
    parameter: Tensor, name: str, parts: int = 1, quantised: bool = True
) -> StateBytes:
    """What `training.optimizer` keeps of a parameter.

    Args:
        parameter: the whole of it; may be on the meta device.
        name: the optimizer.
        parts: processes that hold it together, cut along its first axis.
        quantised: whether its moments may be in few bits (an interpolator's may not).
    """
    check_choice("training.optimizer", name, ["adamw", *LOW_BIT])
    whole = parameter.numel()
    held = whole // parameter.shape[0] * -(-parameter.shape[0] // parts)
    moments = LOW_BIT.get(name) if quantised else None
    block = block_size(parameter.shape, moments.block) if moments else None
    if moments is None or block is None:
        size = parameter.element_size()
        return StateBytes(2 * held * size + _STEP, 2 * whole * size + _STEP)

    def stored(numbers: int) -> int:
        return numbers * moments.bits // 8 + numbers // block * _SCALE

    return StateBytes(2 * (stored(held) + moments.table) + _STEP, 2 * stored(whole) + _STEP)
