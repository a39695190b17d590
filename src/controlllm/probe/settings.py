"""How much a probe looks at, and how."""

from dataclasses import dataclass

from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting

__all__ = ["StudySettings"]


@dataclass(kw_only=True)
class StudySettings:
    """How much is looked at, and how."""

    max_texts: int = setting(16, at_least=1, at_most=10_000)
    """Most texts of a file that are measured."""
    max_length: int = setting(96, at_least=8, at_most=2048)
    """Most tokens of one text; longer ones are cut into pieces."""
    shown: int = setting(2, at_least=1, at_most=20)
    """Texts that are drawn token by token; all are counted."""
    alphas: list[float] = setting(factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0], at_most=1)
    """Settings of the dial that one prompt is continued at."""
    prompt: str | None = None
    """What is continued; null = the beginning of the first text."""
    max_new_tokens: int = setting(48, at_least=1, at_most=4096)
    """Tokens written at each alpha."""
    level: float = setting(0.95, at_least=0.5, at_most=0.9999)
    """Of intervals: how often they hold the true value."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "")
        if not self.alphas:
            raise ConfigError("alphas=[] names no setting of the dial; name at least one.")
