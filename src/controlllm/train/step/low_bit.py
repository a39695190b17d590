"""AdamW that keeps its moments in 8 or 4 bits, by torchao (an optional package).

Bits and blocks stand in `train.config.optimizers.LOW_BIT`; each block has a float32 scale.

torchao would choose what to quantise by the part of a tensor that a process holds. Here the whole
tensor decides, and a block never goes over the end of a row: any number of processes, each with
some of the rows, makes the same updates and can go on from the same checkpoint.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from controlllm.common.errors import ConfigError
from controlllm.train.config.optimizers import LowBit, block_size

if TYPE_CHECKING:
    from torch.optim import Optimizer as _Base
else:  # Mixed into an optimizer of torchao's.
    _Base = object

__all__ = ["low_bit_adamw"]


def low_bit_adamw(
    name: str,
    kind: LowBit,
    groups: list[dict[str, Any]],
    betas: tuple[float, float],
    eps: float,
) -> torch.optim.Optimizer:
    """AdamW with moments in few bits.

    Interpolators' moments are never quantised: they are few numbers that all tokens share. `name`
    is that of `training.optim`, for messages; `groups` are those of `parameter_groups`.

    Raises:
        ConfigError: torchao is not installed, or a tensor is cut in a way that it cannot follow.
    """
    theirs = getattr(kind.require(f"training.optim={name}"), kind.name)
    ours: type[Any] = type("LowBitAdamW", (_LowBit, theirs), {})
    optimizer: Any = ours(groups, betas=betas, eps=eps, block_size=kind.block)
    for parameter in optimizer.quantised():
        _require_rows(parameter, name)
    return optimizer


class _LowBit(_Base):
    """Our part of the optimizers: chooses what is quantised, and compiles on GPUs only."""

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
            f"training.optim={name} needs whole rows of a matrix on each process; it does not "
            "go together with tensor parallelism: use adamw."
        )
    rows = parameter.shape[0]
    for _, parts in cut:
        if math.ceil(rows / math.ceil(rows / parts)) < parts:
            raise ConfigError(
                f"training.optim={name}: some of {parts} processes would hold no row of a "
                f"matrix of {rows}; share the model between fewer (parallel.strategy=hsdp with a "
                "smaller parallel.shard_size), or use adamw."
            )
