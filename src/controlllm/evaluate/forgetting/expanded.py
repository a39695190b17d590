"""What an evaluation asks of an expanded model: whether it is one, and its mean alpha."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from controlllm.common.distributed import Ranks

__all__ = ["is_expanded", "recording_alpha", "unrecorded"]


def is_expanded(model: object) -> bool:
    """Whether it is an expanded model; told by what it has, as remote code has its own class."""
    return hasattr(model, "has_gates")


def recording_alpha(model: Any, ranks: Ranks) -> AbstractContextManager[Any]:
    """Record the mean of the trained alphas, before any dial: collapsing a token gate needs it.

    A model that is not expanded has none, nor has a blend of sidecars, none of which trains.
    Constants that a dial stands in for are not in force, and what was recorded of them before
    stays.
    """
    blends = len(getattr(model, "sidecars", ())) > 1 and not hasattr(model, "disable_branch")
    if blends or not is_expanded(model):
        return nullcontext()
    return model.record_alpha(ranks.gather)


def unrecorded(model: Any) -> AbstractContextManager[Any]:
    """Let a forward pass inside `recording_alpha` not count."""
    return model.unrecorded() if is_expanded(model) else nullcontext()
