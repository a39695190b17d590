"""What the processes of a run must agree on, apart from tensors: errors, and plain values."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from controlllm.common import errors
from controlllm.common.errors import ControlLLMError, LostRankError

__all__ = ["ALONE", "Ranks"]

T = TypeVar("T")

SLACK_SECONDS = 30.0
"""So much longer ranks wait for one another than for anything else: its error must come first."""

_BROKEN = re.compile(r"gloo|NCCL|ProcessGroup|Connection closed by peer|Broken pipe")
"""In messages of torch, which has no class of its own for all of these errors."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    What is collective raises a LostRankError where another rank died or did not answer.

    Attributes:
        rank: which one, 0 <= rank < world_size.
        world_size: how many there are.
        group: a gloo group of them, for plain values; None for a single process.
        patience: how long one may keep the others waiting.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None
    patience: timedelta = timedelta(seconds=1800)

    @classmethod
    def current(cls, timeout: float = 1800.0) -> "Ranks":
        """The default process group where one is initialized, else a single process.

        Collective where there is one: every rank must call it. NCCL moves only what lies on its
        devices, so plain values get a gloo group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        if dist.get_world_size() == 1:
            return cls()
        patience = timedelta(seconds=timeout + SLACK_SECONDS)
        group = dist.new_group(backend="gloo", timeout=patience)
        return cls(dist.get_rank(), dist.get_world_size(), group, patience)

    def fresh_group(self) -> Any:
        """Another group of the same processes, for a thread of its own; None for a single one.

        Collective.
        """
        if self.world_size == 1:
            return None
        return dist.new_group(backend="gloo", timeout=self.patience)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on every rank. Collective."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self._together():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def reduce(self, values: Sequence[float], by: Literal["sum", "max"]) -> list[float]:
        """Each value's sum or maximum over all ranks, in double precision. Collective."""
        if self.world_size == 1 or not values:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device="cpu")
        operation = dist.ReduceOp.SUM if by == "sum" else dist.ReduceOp.MAX
        with self._together():
            dist.all_reduce(tensor, op=operation, group=self.group)
        return tensor.tolist()

    def first(self, make: Callable[[], T]) -> T:
        """Run a function on the first rank and give its result to every rank. Collective.

        Raises:
            ControlLLMError: it failed there.
        """
        made: T | None = None
        error: Exception | None = None
        try:
            made = make() if self.rank == 0 else None
        except Exception as failure:  # Told to all ranks, so that none waits for this one.
            error = failure
        self.agree(error)
        first: T = self.gather(made)[0]
        return first

    def agree(self, error: Exception | None, ended: bool = False) -> bool:
        """Raise an error on every rank if one rank has one, so that none waits for it. Collective.

        An error that came out of `agree` is known to all ranks: it is raised again as it is, and
        no rank waits. So blocks that agree on their own errors may stand inside one another.

        Args:
            error: what went wrong on this rank, if anything.
            ended: whether this rank has come to an end.

        Returns:
            Whether any rank has come to an end.

        Raises:
            ControlLLMError: of the kind of the first error, naming the ranks.
        """
        if error is not None and (self.world_size == 1 or vars(error).get("known_to_all_ranks")):
            raise error
        if self.world_size == 1:
            return ended
        flags = torch.tensor([int(error is not None), int(ended)], device="cpu")
        with self._together():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.group)
        if flags[0]:
            self._fail(error)
        return bool(flags[1])

    def _fail(self, error: Exception | None) -> None:
        words = str(error) if isinstance(error, ControlLLMError) else repr(error)
        told = self.gather(None if error is None else (_kind(error), words))
        failed = [(rank, *what) for rank, what in enumerate(told) if what is not None]
        text = "; ".join(f"rank {rank}: {words}" for rank, _, words in failed)
        failure: ControlLLMError = getattr(errors, failed[0][1])(text)
        vars(failure)["known_to_all_ranks"] = True
        raise failure from error

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Say what it means when the connection to another rank breaks."""
        try:
            yield
        except RuntimeError as error:
            raise self.lost(error) from error

    def lost(self, error: Exception) -> LostRankError:
        """What it means that a collective broke off."""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return LostRankError(
            f"rank {self.rank} of {self.world_size} lost another rank, which died or did not "
            f"answer in time; the messages of that rank say why ({reason})."
        )

    @staticmethod
    def is_broken(error: BaseException) -> bool:
        """Whether an error says that a collective broke off, wherever it was called."""
        if isinstance(error, LostRankError | dist.DistError):
            return True
        return isinstance(error, RuntimeError) and bool(_BROKEN.search(str(error)))


ALONE = Ranks()
"""A single process."""


def _kind(error: Exception) -> str:
    """The name of the nearest class that every rank knows."""
    own = [cls for cls in type(error).__mro__ if cls.__module__ == errors.__name__]
    return own[0].__name__ if own else ControlLLMError.__name__
