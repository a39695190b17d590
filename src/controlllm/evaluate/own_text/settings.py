"""How much own text is measured, and when."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.facts import Read, check_values, setting
from controlllm.common.settings import LARGEST_SEED, TINY
from controlllm.data import SourceConfig
from controlllm.evaluate.forgetting.own import OWN_TEXT, is_own_text

__all__ = ["OWN_TEXT_CHAT", "OwnTextConfig"]

OWN_TEXT_CHAT = f"{OWN_TEXT}_chat"
"""What the set behind the chat template is called."""

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
    num_sequences: int = setting(64, at_least=8, read=_MEASURED)
    """How many sequences are written; for a wished precision, how many at a time."""
    precision: float | None = setting(None, at_least=TINY, may_change=True, read=_MEASURED)
    """Wished precision of the certificate at the end: how many nats per token its bound may be
    above the estimate. The base writes more sequences until it is; null = num_sequences suffice."""
    max_sequences: int = setting(
        1024,
        at_least=8,
        may_change=True,
        read=Read(
            lambda config: config.own_text.precision is not None, "own_text.precision is null"
        ),
    )
    """Most sequences that a wished precision may ask for."""
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
    cache_dir: str | None = setting(None, may_change=True, read=_MEASURED)
    """Where sequences are cached; null = own_text/ in the run's folder."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "own_text")

    def check_names(self, retain: Iterable[SourceConfig]) -> None:
        """Check that no set of the user's is called as own text is (ConfigError)."""
        for name in (str(source.name) for source in retain):
            if is_own_text(name):
                raise ConfigError(
                    f"data.retain has a set called {name!r}: names that begin with {OWN_TEXT!r} "
                    "are for what the base writes. Give it another `name`."
                )

    def measured_in(self, config: Any) -> bool:
        """Whether a run, or another config with `data`, measures own text."""
        if self.measure is not None:
            return self.measure
        training = getattr(config, "training", None)
        aims = config.data.learn or getattr(training, "max_forgetting", None) is not None
        return bool(aims and not config.data.retain)
