"""How much own text is measured, and when."""

from dataclasses import dataclass
from typing import Any

from controlllm.common.facts import Read, check_values, setting
from controlllm.common.settings import LARGEST_SEED

__all__ = ["OwnTextConfig"]

_MEASURED = Read(
    lambda config: config.own_text.measured_in(config),
    "own text is not measured; set own_text.measure=true",
)


@dataclass
class OwnTextConfig:
    """Own text: what the base writes by itself, never trained on, is a retain set.

    On it the expected rise of the loss is KL(base || model). Docs: docs/certificate.md.
    """

    measure: bool | None = None
    """Whether it is measured; null = where data.retain names no set, and the run has something to
    learn (data.learn) or to keep to (training.max_forgetting)."""
    num_sequences: int | None = setting(None, at_least=2, read=_MEASURED)
    """How many sequences are written; null = 64."""
    length: int | None = setting(None, at_least=4, read=_MEASURED)
    """Most tokens of one, its prompt included; null = data.max_length, but at most 512."""
    seed: int = setting(0, at_most=LARGEST_SEED, read=_MEASURED)
    """Of what is written; rehearsal draws other sequences, whatever its seed."""
    batch_size: int = setting(64, at_least=1, read=_MEASURED)
    """Sequences written at a time."""
    prompts: str | None = setting(None, read=_MEASURED)
    """Text file, one prompt per line, to start sequences from; null = the BOS token."""
    chat: bool | None = setting(None, read=_MEASURED)
    """Whether there is a second set, written behind the chat template; null = where the tokenizer,
    or data.chat_template, has one that is not our `plain`."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "own_text")

    def measured_in(self, config: Any) -> bool:
        """Whether a run, or another config with `data`, measures own text."""
        if self.measure is not None:
            return self.measure
        training = getattr(config, "training", None)
        aims = config.data.learn or getattr(training, "max_forgetting", None) is not None
        return bool(aims and not config.data.retain)
