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
    """Record the mean of the trained alphas, which collapsing a token gate needs.

    A model that is not expanded has none; under a dial the trained alphas are not in force, and
    what was recorded before stays.
    """
    if isinstance(model, Expanded) and model.expansion.dial is None:
        return model.record_alpha(ranks.gather)
    return nullcontext()


def unrecorded(model: object) -> AbstractContextManager[Any]:
    """Let a forward pass inside `recording_alpha` not count."""
    return model.unrecorded() if isinstance(model, Expanded) else nullcontext()
