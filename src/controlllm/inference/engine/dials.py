"""The model as a voice: which sidecars take part, at which alpha."""

from collections.abc import Mapping
from typing import Any

from controlllm.common.adapters import has_adapters, switch_adapters
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.inference.engine.protocol import Voice

__all__ = ["Dials"]


class Dials:
    """Sets the dial of one model; only the thread that owns the model may call it.

    Args:
        model: an expanded one, one with named sidecars, one with adapters, or a plain one.
        name: what its only sidecar is called, where it has no name of its own.
        saved: the dial that each named sidecar was saved with, where that is not what it stands at.
    """

    def __init__(self, model: Any, name: str, saved: Mapping[str, Any] | None = None) -> None:
        self.model = model
        self.is_expanded = isinstance(model, ControlLLMForCausalLM)
        self._named = _usual_first(model) if self.is_expanded and model.sidecars else ()
        is_tuned = self.is_expanded or has_adapters(model)
        self.sidecars: tuple[str, ...] = self._named or ((name,) if is_tuned else ())
        self._saved: dict[str, Any] = {}
        if self._named:
            self._saved = {name: one.dial for name, one in model.expansions.items()}
        elif self.is_expanded:
            self._saved[name] = model.expansion.dial
        self._saved |= saved or {}
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
        if not self.is_expanded:
            switch_adapters(self.model, on=not voice.is_base)
            return
        dials = {name: self._dial(name, alpha) for name, alpha in voice.alphas}
        if self._named:
            if len(dials) == 1:  # A blend says all dials by itself.
                dials = self.model.beneath(*dials) | dials
            self.model.stand_at(dials)
        else:
            self.model.set_alpha(0.0 if voice.is_base else None)
            for dial in dials.values():
                self.model.set_alpha(dial)

    def _dial(self, name: str, alpha: float | None) -> Any:
        return self._saved.get(name) if alpha is None else alpha


def _usual_first(model: Any) -> tuple[str, ...]:
    """The names of a model's sidecars, first the one that is meant where none is named."""
    return tuple(sorted(model.sidecars, key=lambda name: name != model.usual))
