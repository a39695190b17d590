"""What may be said about how text is sampled."""

from dataclasses import dataclass
from typing import Any

from controlllm.common.facts import Read, check_values, rules_of, setting
from controlllm.common.settings import LARGEST_SEED, TINY, check_said

__all__ = ["GenerationSettings"]

_SAMPLING = Read(
    lambda settings: settings.temperature > 0, "temperature=0 does not sample; set it", refuse=True
)


@dataclass
class GenerationSettings:
    """How text is sampled."""

    max_new_tokens: int = setting(256, at_least=1)
    """Most tokens written at a time."""

    temperature: float = setting(0.0)
    """0 always takes the likeliest token; 1 samples from the model's own distribution."""

    top_p: float = setting(1.0, at_least=TINY, at_most=1, read=_SAMPLING)
    """Sample from the likeliest tokens that together have this probability."""

    top_k: int = setting(0, read=_SAMPLING)
    """Sample from so many likeliest tokens; 0 = all."""

    repetition_penalty: float = setting(1.0, at_least=1e-6)
    """Above 1, tokens that have occurred become less likely."""

    seed: int | None = setting(None, at_most=LARGEST_SEED, read=_SAMPLING)
    """Seed of the sampling; null = a different text each time."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "")
        check_said(self, [*rules_of(GenerationSettings)])

    def arguments(self) -> dict[str, Any]:
        """The arguments of `generate`; sampling values only where there is sampling."""
        samples = self.temperature > 0
        return {
            "max_new_tokens": self.max_new_tokens,
            "repetition_penalty": self.repetition_penalty,
            "do_sample": samples,
            "temperature": self.temperature if samples else None,
            "top_p": self.top_p if samples else None,
            "top_k": self.top_k if samples else None,
        }
