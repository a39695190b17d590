"""The optimizers, each with what a run config and a plan know of it; `step.optim` makes them.

>>> import torch
>>> OPTIMIZERS.get("adamw").state_bytes(torch.empty(64, 256)).memory
131076
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from controlllm.common.quiet import require_package
from controlllm.common.registry import Registry

if TYPE_CHECKING:  # A run config is also read where nothing is computed.
    import torch
    from torch import Tensor

__all__ = ["LOW_BIT", "OPTIMIZERS", "LowBit", "Optimizer", "StateBytes", "block_size", "held"]

_STEP, _SCALE = 4, 4
MIN_VALUES = 4096
"""Smaller tensors are kept as they are (as by bitsandbytes and torchao)."""

MIN_BLOCK = 32
"""Below this the scales would cost more than the bits that are saved."""


@dataclass(frozen=True)
class StateBytes:
    """What is kept of one parameter: its moments and the step."""

    memory: int  # on the process that holds most
    saved: int  # in a checkpoint, of all processes together


@dataclass(frozen=True)
class Optimizer:
    """The facts of an optimizer whose moments are held in full precision."""

    moments: int = 2  # how many tensors it keeps for each parameter
    needs_rows: ClassVar[bool] = False  # whether each process has to hold whole rows of a matrix

    def require(self, setting: str) -> Any:
        """Import what it needs; `setting` is for the message (ConfigError: it is missing)."""

    def state_bytes(
        self, parameter: "Tensor", parts: int = 1, quantised: bool = True
    ) -> StateBytes:
        """What it keeps of a parameter.

        Args:
            parameter: the whole of it; may be on the meta device.
            parts: processes that hold it together, cut along its first axis.
            quantised: whether its moments may be in few bits (an interpolator's may not).
        """
        size = self.moments * parameter.element_size()
        return StateBytes(held(parameter, parts) * size + _STEP, parameter.numel() * size + _STEP)


@dataclass(frozen=True)
class LowBit(Optimizer):
    """An optimizer of torchao: moments are codes, with a scale per block and a table of codes."""

    name: str = ""  # torchao's class
    bits: int = 8  # of a code
    block: int = 256  # how many neighbours share a scale at most
    table: int = 0  # bytes of it, where codes are no numbers themselves
    needs_rows: ClassVar[bool] = True

    def require(self, setting: str) -> Any:
        """Import torchao's optimizers (ConfigError: torchao is not installed)."""
        return require_package("torchao.optim", setting)

    def state_bytes(
        self, parameter: "Tensor", parts: int = 1, quantised: bool = True
    ) -> StateBytes:
        """As `Optimizer.state_bytes`."""
        block = block_size(parameter.shape, self.block) if quantised else None
        if block is None:
            return super().state_bytes(parameter, parts)

        def stored(numbers: int) -> int:
            return numbers * self.bits // 8 + numbers // block * _SCALE

        most, whole = stored(held(parameter, parts)), stored(parameter.numel())
        return StateBytes(self.moments * (most + self.table) + _STEP, self.moments * whole + _STEP)


def held(parameter: "Tensor", parts: int) -> int:
    """Numbers of a parameter on the process that holds most; it is cut along its first axis."""
    rows = parameter.shape[0] if parts > 1 else 1
    return parameter.numel() // rows * -(-rows // parts)


def block_size(shape: "torch.Size", largest: int) -> int | None:
    """How many neighbours share a scale; None for a tensor that is not quantised.

    >>> import torch
    >>> block_size(torch.Size([896, 4864]), 256), block_size(torch.Size([4864, 896]), 256)
    (256, 128)
    >>> block_size(torch.Size([4096]), 256) is None  # a norm
    True

    That is `largest`, where the rows of the whole tensor are a multiple of it; else its half, ...
    """
    if len(shape) < 2 or shape.numel() < MIN_VALUES:
        return None
    width = shape[1:].numel()
    while largest >= MIN_BLOCK and width % largest:
        largest //= 2
    return largest if largest >= MIN_BLOCK else None


LOW_BIT = {
    "adamw_8bit": LowBit(name="AdamW8bit", table=4 * 256),
    "adamw_4bit": LowBit(name="AdamW4bit", bits=4, block=128, table=4 * 16),
    "adamw_fp8": LowBit(name="AdamWFp8"),
}
"""Those of torchao, by the name used in the run config."""

OPTIMIZERS: Registry[Optimizer] = Registry("training.optim")
"""Optimizers by the name used in the run config; `step.optim.register_optimizer` adds one."""

for _name, _optimizer in {"adamw": Optimizer(), **LOW_BIT}.items():
    OPTIMIZERS.register(_name)(_optimizer)
