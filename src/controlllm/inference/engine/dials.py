"""The model as a voice: which sidecars take part, at which alpha."""

from typing import Any

from controlllm.common.adapters import has_adapters, switch_adapters
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.inference.engine.protocol import Voice

__all__ = ["Dials"]


class Dials:
    """Sets the dial of one model; only the thread that owns the model may call it.

    Args:
        model: an expanded model, one with adapters, or a plain one.
        name: what its only sidecar is called, where it has no name of its own.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.is_expanded = isinstance(model, ControlLLMForCausalLM)
        self.sidecars: tuple[str, ...] = (name,) if self.is_expanded or has_adapters(model) else ()
        self._saved = model.expansion.dial if self.is_expanded else None
        self._now: Voice | None = None

    def speak_as(self, voice: Voice) -> None:
        """Let the model be a voice, until the next call."""
        if voice != self._now:
            self._now = None
            self._turn(voice)
            self._now = voice

    def forget(self) -> None:
        """Somebody else may have turned the dial."""
        self._now = None

    def _turn(self, voice: Voice) -> None:
        if self.is_expanded:
            self._set_alpha(0.0 if voice.is_base else voice.alphas[0][1])
        elif self.sidecars:
            switch_adapters(self.model, on=not voice.is_base)

    def _set_alpha(self, alpha: float | None) -> None:
        self.model.set_alpha(alpha)
        if alpha is None and self._saved is not None:
            self.model.set_alpha(self._saved)
