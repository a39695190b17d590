"""What the processes of a run must agree on, apart from tensors: errors, and plain values."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from controlllm.common.errors import ControlLLMError

__all__ = ["Ranks"]


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: which one, 0 <= rank < world_size.
        world_size: how many there are.
        group: a gloo group of them, for plain values; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None

    @classmethod
    def current(cls, timeout: float = 1800.0) -> "Ranks":
        """The default process group where one is initialized, else a single process.

        Collective where there is one: every rank must call it. NCCL moves only what lies on its
        devices, so plain values get a gloo group.

        Args:
            timeout: seconds that one rank may keep the others waiting.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        if dist.get_world_size() == 1:
            return cls()
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        return cls(dist.get_rank(), dist.get_world_size(), group)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on every rank. Collective."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def agree(self, error: Exception | None, ended: bool = False) -> bool:
        """Fail on all ranks where one has failed, so that none waits for it. Collective.

        Args:
            error: what went wrong on this rank, if anything.
            ended: whether this rank has come to an end.

        Returns:
            Whether any rank has come to an end.

        Raises:
            ControlLLMError: of the kind of the first error, naming the ranks.
        """
        if self.world_size == 1:
            if error is not None:
                raise error
            return ended
        flags = torch.tensor([int(error is not None), int(ended)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.group)
        if flags[0]:
            self._fail(error)
        return bool(flags[1])

    def _fail(self, error: Exception | None) -> None:
        told = self.gather(None if error is None else (type(error), str(error)))
        failed = [(rank, *what) for rank, what in enumerate(told) if what is not None]
        text = "; ".join(f"rank {rank}: {message}" for rank, _, message in failed)
        kind = failed[0][1] if issubclass(failed[0][1], ControlLLMError) else ControlLLMError
        raise kind(text) from error
