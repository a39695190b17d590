"""What a study tries that the library has no option for.

A trial is a module of `trials` with a class `Trial`, made from an arm's `settings`. What wins
becomes an option of the library; what does not leaves nothing behind in it.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any
from unittest.mock import patch

from benchmarks.study.plan import Arm, Cell

from controlllm.common.errors import ConfigError
from controlllm.data import Batch
from controlllm.evaluate.forgetting.dial import Dial
from controlllm.train.setup import ready
from controlllm.train.step.losses import StepLoss

__all__ = ["Trial", "make_trial", "step_loss"]


class Trial:
    """Nothing but what the library does; a trial overrides what it changes."""

    def __init__(self, **settings: Any) -> None:
        """Take the settings of the arm."""

    def values(self, cell: Cell, files: Mapping[str, str]) -> dict[str, Any]:
        """Values of the run file, laid over the arm's. `files` are the study's texts by name."""
        return {}

    def training(self) -> AbstractContextManager[Any]:
        """What is in force while the model is set up and trained."""
        return nullcontext()

    def dial(self, dial: Dial, chosen: Mapping[str, Sequence[Batch]]) -> Dial:
        """Another dial than alpha, or than the weight in an average with the base.

        `chosen` are the sets that may be chosen on: `new` and own text (`own`, `own_chat`).
        """
        return dial


def make_trial(arm: Arm) -> Trial:
    """The trial of an arm; one that changes nothing where it names none.

    Raises:
        ConfigError: if the trial has no such settings.
    """
    if arm.trial is None:
        return Trial(**arm.settings)
    kind: type[Trial] = import_module(f"benchmarks.study.trials.{arm.trial}").Trial
    try:
        inspect.signature(kind).bind(**arm.settings)
    except TypeError as error:
        raise ConfigError(f"trial {arm.trial!r}: settings={arm.settings!r}: {error}.") from error
    return kind(**arm.settings)


@contextmanager
def step_loss(kind: type[StepLoss], **settings: Any) -> Iterator[None]:
    """Inside, runs compute the loss of a step by `kind`, which has these attributes."""

    def make(*args: Any, **named: Any) -> StepLoss:
        loss = kind(*args, **named)
        vars(loss).update(settings)
        return loss

    with patch.object(ready, "StepLoss", make):
        yield
