"""How an adapter expands its base, as PEFT keeps it: `adapter_config.json`."""

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from peft import PeftConfig, TaskType

from controlllm.common.errors import ConfigError
from controlllm.common.registry import check_choice
from controlllm.common.storage.files import write_text
from controlllm.expansion.files.card import model_card
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.integrations.peft.names import PEFT_TYPE

__all__ = ["ControlLLMPeftConfig"]

CARD_MARK = "<!-- Written anew with each save; remove this line to keep your own text. -->"
TEMPLATE_MARK = "[More Information Needed]"


@dataclass
class ControlLLMPeftConfig(ExpansionConfig, PeftConfig):
    """The settings of `ExpansionConfig`, with the same defaults, and those of every PEFT adapter.

    Raises:
        ConfigError: for every value that cannot work, and for a setting that does not exist.
    """

    task_type: str | None = "CAUSAL_LM"
    """Only causal language models can be expanded."""

    base: dict[str, Any] | None = None
    """What is known of the base: its name, its size, its fingerprint. Filled in, not to be set."""

    check_base: bool = True
    """Refuse a base with another fingerprint. A setting for loading; it is not saved."""

    target_modules: tuple[str, ...] | None = field(
        init=False, default=None, repr=False, compare=False
    )
    """The plan's modules in the model at hand, while PEFT puts an adapter in; None otherwise."""

    def __new__(cls, *args: Any, **settings: Any) -> "ControlLLMPeftConfig":
        """Refuse unknown settings: PEFT would leave them out with a warning, and go on wrongly."""
        for key in settings:
            check_choice("ControlLLMPeftConfig key", key, [f.name for f in fields(cls) if f.init])
        return super().__new__(cls)

    def __post_init__(self) -> None:
        PeftConfig.__post_init__(self)
        ExpansionConfig.__post_init__(self)
        self.peft_type = PEFT_TYPE
        if self.task_type not in (None, TaskType.CAUSAL_LM):
            raise ConfigError(f"task_type={self.task_type!r}; allowed: 'CAUSAL_LM'.")
        self.task_type = TaskType.CAUSAL_LM
        in_place = set(ExpansionConfig().frozen_groups) - set(self.frozen_groups)
        if in_place:
            raise ConfigError(
                f"freeze={self.freeze!r} would train {', '.join(sorted(in_place))} of the base "
                "in place, which adapters share; leave freeze out. For embeddings, norm and head "
                "there is expand_ends=True."
            )
        self.recorded_base = self.base

    def expansion(self) -> ExpansionConfig:
        """What this config says beside PEFT's own settings."""
        return ExpansionConfig(**{f.name: getattr(self, f.name) for f in fields(ExpansionConfig)})

    def card_config(self) -> ControlLLMConfig:
        """The same in the form that model cards and sidecars are written from."""
        return ControlLLMConfig(expansion=self.expansion().to_dict(), base=self.base)

    def to_dict(self) -> dict[str, Any]:
        """All that is saved, as plain values."""
        unsaved = ("check_base", "target_modules")
        return {key: value for key, value in asdict(self).items() if key not in unsaved}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write the config, as PEFT does it, and a model card.

        A card that a person has written stays.
        """
        super().save_pretrained(str(save_directory), **kwargs)
        card = Path(save_directory) / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else CARD_MARK
        if CARD_MARK in text or TEMPLATE_MARK in text:
            write_text(card, f"{model_card(self.card_config(), 'adapter')}\n{CARD_MARK}\n")
