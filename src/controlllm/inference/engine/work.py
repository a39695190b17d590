"""What waits for the model: texts to be written and jobs to be run, advanced step by step."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from controlllm.inference.engine.protocol import Held, TimeUpError

__all__ = ["Cancelled", "Job", "Work"]

T = TypeVar("T")


class Cancelled(Exception):
    """Nobody waits for this any more."""


class Work(ABC):
    """One thing to do with the model. `advance` is called by the thread that owns it, only."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self.cancelled = False
        self.ended: Exception | None = None

    def check(self) -> None:
        """Whether it is still wanted.

        Raises:
            Cancelled: nobody waits for it.
            TimeUpError: it took too long.
            Exception: what `ended` is, where somebody has ended it.
        """
        if self.cancelled:
            raise Cancelled
        if self.ended is not None:
            raise self.ended
        if time.monotonic() > self.deadline:
            raise TimeUpError(f"the request took longer than {self.seconds:g} seconds.")

    @abstractmethod
    def advance(self) -> bool:
        """Do a little; whether there is more to do."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """Tell whoever waits that it went wrong."""


class Job(Work, Generic[T]):
    """A function of the model, run whole."""

    def __init__(
        self,
        job: Callable[[Held], T],
        hold: Callable[[Callable[[], None]], Held],
        tell: Callable[[T | None, BaseException | None], None],
        seconds: float,
    ) -> None:
        super().__init__(seconds)
        self._job, self._hold, self._tell = job, hold, tell

    def advance(self) -> bool:
        """Run it."""
        self._tell(self._job(self._hold(self.check)), None)
        return False

    def fail(self, error: BaseException) -> None:
        """Hand the error over."""
        self._tell(None, error)
