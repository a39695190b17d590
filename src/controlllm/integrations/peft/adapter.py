"""One adapter: an expansion of a base beside others, with its tensors and its dial."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from controlllm.expansion.surgery.dial import Alpha, Dial
from controlllm.expansion.surgery.install import Expansion
from controlllm.integrations.peft.config import ControlLLMPeftConfig
from controlllm.integrations.peft.names import BRANCHES

__all__ = ["Adapter"]


class Adapter(Dial):
    """One adapter: what it put beside the base, and its dial.

    Args:
        settings: its config, which PEFT saves; the dial is written there.
        expansion: its parts.
        places: the name in the base of the module beside which each part stands, in order.
    """

    def __init__(
        self, settings: ControlLLMPeftConfig, expansion: Expansion, places: list[str]
    ) -> None:
        self.settings = settings
        self.config = settings.card_config()
        self._expansion = expansion
        self.places = dict(zip(places, expansion.parts(), strict=True))
        ends = expansion.ends
        self.tied = bool(ends) and ends["head"].expanded.weight is ends["embedding"].expanded.weight

    @property
    def parts(self) -> Expansion:
        """The expanded blocks and ends, and what they share during a forward pass."""
        return self._expansion

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names that a sidecar gives them; tied ones come once."""
        named = {
            f"{place}.{name}": parameter
            for place, part in self.places.items()
            for name, parameter in part.named_parameters()
            if name.split(".")[0] in BRANCHES
        }
        seen: dict[int, str] = {}
        return {n: p for n, p in named.items() if seen.setdefault(id(p), n) == n}

    def set_alpha(self, alpha: Alpha) -> None:
        """Turn the dial, as `ControlLLMForCausalLM.set_alpha` does; it is saved, too."""
        super().set_alpha(alpha)
        self.settings.dial = self.expansion.dial

    @contextmanager
    def record_alpha(self, gather: Callable[[Any], list[Any]] | None = None) -> Iterator[None]:
        """Measure mean alphas, as `ControlLLMForCausalLM.record_alpha` does; they are saved."""
        with super().record_alpha(gather):
            yield
        self.settings.mean_alpha = self.expansion.mean_alpha

    @property
    def _module(self) -> nn.Module:
        """Where adapters on top of the expansion are: nowhere, as it is one itself."""
        return nn.Module()

    def settle(self) -> None:
        """Tie again what is tied, after a loader has made all parameters anew."""
        ends = self._expansion.ends
        if self.tied:
            ends["head"].expanded.weight = ends["embedding"].expanded.weight
