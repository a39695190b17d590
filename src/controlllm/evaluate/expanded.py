"""What an evaluation asks of an expanded model: its base, its dial, its mean alpha."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

from controlllm.common.distributed import Ranks

__all__ = ["Expanded", "recording_alpha", "unrecorded"]


@runtime_checkable
class Expanded(Protocol):
    """The part of `ControlLLMForCausalLM` that evaluations use."""

    @property
    def expansion(self) -> Any:
        """The expansion's config; its `dial` is None where the trained alphas are in force."""
        ...

    @property
    def has_gates(self) -> bool:
        """Whether alpha is decided for each token, so that the dial multiplies it."""
        ...

    def disable_expansion(self) -> AbstractContextManager[Any]:
        """Inside the context the model computes exactly its base."""
        ...

    def set_alpha(self, alpha: float | None) -> Any:
        """Turn the dial; None is the trained alpha again."""
        ...

    def record_alpha(self, gather: Any = None) -> AbstractContextManager[Any]:
        """Keep the mean alpha of the forward passes inside in the model's config."""
        ...

    def unrecorded(self) -> AbstractContextManager[Any]:
        """Inside, `record_alpha` does not count."""
        ...


def recording_alpha(model: object, ranks: Ranks) -> AbstractContextManager[Any]:
    """Record the mean of the trained alphas, before any dial: collapsing a token gate needs it.

    A model that is not expanded has none. Constants that a dial stands in for are not in force, and
    what was recorded of them before stays.
    """
    if isinstance(model, Expanded):
        return model.record_alpha(ranks.gather)
    return nullcontext()


def unrecorded(model: object) -> AbstractContextManager[Any]:
    """Let a forward pass inside `recording_alpha` not count."""
    return model.unrecorded() if isinstance(model, Expanded) else nullcontext()
