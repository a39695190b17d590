"""The one place that knows how to ask the base."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from controlllm.common.adapters import as_base, carries_base
from controlllm.common.errors import ModelError
from controlllm.evaluate.forgetting.losses import evaluating, model_logits

__all__ = ["Reference"]


class Reference:
    """What a model was before: the model with expansion and adapters disabled, or a frozen copy.

    Args:
        model: the trained model.
        copy: the base, for models that do not carry it inside (full tuning, LoRA merged, ...), or
            an earlier stage.
        inside: where the model computes what it was before, if there is no copy.

    Raises:
        ModelError: if the model has neither expansion nor adapters, and no copy is given, or the
            copy has another vocabulary.
    """

    def __init__(
        self,
        model: nn.Module,
        copy: nn.Module | None = None,
        inside: Callable[[Any], AbstractContextManager[Any]] = as_base,
    ) -> None:
        if copy is None and not carries_base(model):
            raise ModelError(
                f"{type(model).__name__} holds no base inside, so forgetting cannot be "
                "measured by itself: give the base as `Reference(model, copy=base)`."
            )
        own, other = _vocabulary(model), _vocabulary(copy)
        if copy is not None and None not in (own, other) and own != other:
            raise ModelError(
                f"the model has a vocabulary of {own} tokens and its base one of {other}: their "
                "losses on a text are not comparable. Give the base that it was trained from."
            )
        self.model = model
        self.copy = copy
        self.inside = inside

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """Yield the model that computes the base as long as the context is open."""
        if self.copy is not None:
            yield self.copy
            return
        with self.inside(self.model):
            yield self.model

    def forward(self, **inputs: Any) -> Tensor:
        """Logits (B, T, V) of the base for the same inputs, in evaluation mode, no gradient."""
        with self.active() as base, evaluating(base):
            return model_logits(base, inputs)


def _vocabulary(model: Any) -> int | None:
    """How many tokens a model of transformers tells apart."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None
    return getattr(text, "vocab_size", None)
