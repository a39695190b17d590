"""AdamW that keeps its moments in 8 or 4 bits, by torchao (an optional package).

| `training.optimizer` | a number of a moment takes |
|---|---|
| `adamw_8bit` | 8 bits, and a float32 scale for each block of at most 256 |
| `adamw_4bit` | 4 bits, and a float32 scale for each block of at most 128 |
| `adamw_fp8` | 8 bits (float8 e4m3), and a float32 scale for each block of at most 256 |

torchao would choose what to quantise by the part of a tensor that a process holds. Here the whole
tensor decides, and a block never goes over the end of a row: any number of processes, each with
some of the rows, makes the same updates and can go on from the same checkpoint.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from controlllm.common.errors import ConfigError
from controlllm.common.packages.torchao import require_torchao

if TYPE_CHECKING:
    from torch.optim import Optimizer as _Base
else:  # Mixed into an optimizer of torchao's.
    _Base = object

__all__ = ["LOW_BIT", "Moments", "block_size", "low_bit_adamw"]


@dataclass(frozen=True)
class Moments:
    """How numbers are kept in few bits: codes, a scale for each block, a table of the codes.

    Attributes:
        optimizer: torchao's class.
        bits: of a code.
        block: how many neighbours share a scale at most.
        table: bytes of it, where codes are no numbers themselves.
    """

    optimizer: str
    bits: int
    block: int
    table: int


LOW_BIT = {
    "adamw_8bit": Moments("AdamW8bit", 8, 256, 4 * 256),
    "adamw_4bit": Moments("AdamW4bit", 4, 128, 4 * 16),
    "adamw_fp8": Moments("AdamWFp8", 8, 256, 0),
}
"""For each name in a run config."""

MIN_VALUES = 4096
"""Smaller tensors are kept as they are (as by bitsandbytes and torchao)."""

MIN_BLOCK = 32
"""Below this the scales would cost more than the bits that are saved."""


def block_size(shape: torch.Size, largest: int) -> int | None:
    """How many neighbours share a scale; None for a tensor that is not quantised.

    >>> block_size(torch.Size([896, 4864]), 256), block_size(torch.Size([4864, 896]), 256)
    (256, 128)
    >>> block_size(torch.Size([4096]), 256) is None  # a norm
    True

    Args:
        shape: of the whole tensor.
        largest: the block to use where rows are a multiple of it; else the half of it, and so on.
    """
    if len(shape) < 2 or shape.numel() < MIN_VALUES:
        return None
    width = shape[1:].numel()
    while largest >= MIN_BLOCK and width % largest:
        largest //= 2
    return largest if largest >= MIN_BLOCK else None


def low_bit_adamw(
    name: str, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """AdamW with moments in few bits.

    Interpolators' moments are never quantised: they are few numbers that all tokens share.

    Args:
        name: one of `LOW_BIT`.
        groups: as `parameter_groups` gives them.
        betas: decays of the moments.
        eps: AdamW's epsilon.

    Raises:
        ConfigError: torchao is not installed, or a tensor is cut in a way that it cannot follow.
    """
    optim = require_torchao("torchao.optim", f"training.optimizer={name}")
    moments = LOW_BIT[name]
    kind: type[Any] = type("LowBitAdamW", (_LowBit, getattr(optim, moments.optimizer)), {})
    optimizer: Any = kind(groups, betas=betas, eps=eps, block_size=moments.block)
    for parameter in optimizer.quantised():
        _require_rows(parameter, name)
    return optimizer


class _LowBit(_Base):
    """What is ours of the optimizers: which tensors are quantised; and no compiler on a CPU."""

    block_size: int
    _subclass_zeros: Callable[[Tensor, bool, int], Tensor]

    def quantised(self) -> Iterator[Tensor]:
        """The parameters whose moments are in few bits."""
        for group in self.param_groups:
            if group["name"] != "interpolators":
                for parameter in group["params"]:
                    if block_size(parameter.shape, self.block_size):
                        yield parameter

    def moment_like(self, parameter: Tensor) -> Tensor:
        """A moment of a parameter, of zeros, which is not kept."""
        return self._new_buffer(parameter, True)

    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        """A moment of zeros; torchao calls this at a parameter's first step."""
        block = block_size(p.shape, self.block_size)
        if block is None or not any(p is one for one in self.quantised()):
            return torch.zeros_like(p)
        if not hasattr(p, "to_local"):
            return self._subclass_zeros(p, signed, block)
        from torch.distributed.tensor import DTensor

        assert isinstance(p, DTensor)
        moment = DTensor.from_local(
            self._subclass_zeros(p.to_local(), signed, block),
            device_mesh=p.device_mesh,
            placements=p.placements,
            run_check=False,
            shape=p.shape,
            stride=p.stride(),
        )
        return moment.to(p.device)

    def step(self, closure: Any = None) -> Any:
        """An update; torchao compiles it, which on a CPU takes longer than it saves."""
        if self.param_groups[0]["params"][0].device.type != "cpu":
            return super().step(closure)
        with torch.compiler.set_stance("force_eager"):
            return super().step(closure)


def _require_rows(parameter: Tensor, name: str) -> None:
    """Check that each process holds some rows of a matrix, and all of each (ConfigError)."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return
    placed = zip(parameter.placements, mesh.shape, strict=True)  # type: ignore[attr-defined]
    cut = [(placement, parts) for placement, parts in placed if not placement.is_replicate()]
    if any(not placement.is_shard(0) for placement, _ in cut) or len(cut) > 1:
        raise ConfigError(
            f"training.optimizer={name} needs whole rows of a matrix on each process; it does not "
            "go together with tensor parallelism: use adamw."
        )
    rows = parameter.shape[0]
    for _, parts in cut:
        if math.ceil(rows / math.ceil(rows / parts)) < parts:
            raise ConfigError(
                f"training.optimizer={name}: some of {parts} processes would hold no row of a "
                f"matrix of {rows}; share the model between fewer (parallel.strategy=hsdp with a "
                "smaller parallel.shard_size), or use adamw."
            )
