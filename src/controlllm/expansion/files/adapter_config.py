"""Which adapters are put where: one dataclass, checked when it is made."""

from dataclasses import dataclass

from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.settings import Rule, check_said

__all__ = ["AdapterConfig"]

_RULES = (
    Rule("r", lambda c: c.type != "oft", "oft has blocks (block_size), no rank; leave it out"),
    Rule("alpha", lambda c: c.type != "oft", "oft has blocks, no rank to scale by; leave it out"),
    Rule("block_size", lambda c: c.type == "oft", "only peft.type=oft reads it; leave it out"),
)


@dataclass
class AdapterConfig:
    """Which adapters, and where.

    Raises:
        ConfigError: for a value that cannot work.
    """

    type: str | None = setting(None, choices=("lora", "dora", "oft"))
    """`lora`, `dora` or `oft`; null = `lora` for method `lora`, and none for method `control`."""
    r: int = setting(8, at_least=1)
    """Rank (lora, dora)."""
    alpha: int | None = setting(None, at_least=1)
    """An adapter's output is scaled by alpha / r (lora, dora); null = 2 r."""
    dropout: float = 0.0
    """Dropout of an adapter's input (lora, dora), or of its blocks (oft)."""
    block_size: int = setting(32, at_least=2)
    """Size of the blocks that are rotated (oft); divides the width of every layer's input."""
    target_modules: list[str] | None = None
    """Last parts of the names of the layers, such as [q_proj, v_proj]; null = all linear ones."""
    layers: list[int] | None = None
    """Blocks that get adapters; null = all that are not expanded."""

    def __post_init__(self) -> None:
        check_values(self, "peft")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"peft.dropout={self.dropout!r} must be at least 0 and below 1.")
        for name in ("target_modules", "layers"):
            if getattr(self, name) == []:
                raise ConfigError(f"peft.{name} is empty; name at least one, or set it to null.")
        check_said(self, _RULES, where="peft")
