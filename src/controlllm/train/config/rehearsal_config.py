"""Self-rehearsal: what the base writes, and how much of it is trained on."""

from dataclasses import dataclass

from controlllm.common.facts import Read, check_values, setting
from controlllm.common.settings import TINY

__all__ = ["RehearsalConfig"]

_REHEARSES = "rehearsal.num_sequences and rehearsal.share are above 0"
_REHEARSING = Read(lambda run: run.rehearsal.enabled, f"only if {_REHEARSES}")


@dataclass
class RehearsalConfig:
    """Self-rehearsal: the base writes sequences, and a share of each batch rehearses them."""

    num_sequences: int = setting(
        0, read=Read(lambda run: run.rehearsal.share > 0, f"only if {_REHEARSES}")
    )
    """How many sequences the base writes, with max_epochs at a time; 0 = no rehearsal."""
    max_epochs: float | None = setting(None, at_least=TINY, read=_REHEARSING)
    """Most passes of the run over what the base wrote: it writes more sequences, until the run
    reads them no more often; null = num_sequences suffice, however long the run is."""
    max_sequences: int = setting(
        8192,
        at_least=1,
        read=Read(
            lambda run: run.rehearsal.enabled and run.rehearsal.max_epochs is not None,
            "rehearsal.max_epochs is null",
        ),
    )
    """Most sequences that max_epochs may ask for."""
    share: float = setting(
        0.125,
        at_most=0.9,
        read=Read(lambda run: run.rehearsal.num_sequences > 0, f"only if {_REHEARSES}"),
    )
    """Share of the rows of each batch that are rehearsed."""
    chat_share: float | None = setting(None, at_most=0.9, may_change=True, read=_REHEARSING)
    """Share of the sequences that are conversations behind the chat template, both turns written by
    the base; null = a half where the tokenizer brings a template (data.chat_template is null) and
    there are no `prompts`, else none."""
    length: int | None = setting(None, at_least=2, read=_REHEARSING)
    """Tokens of one sequence; null = data.max_length."""
    loss: str = setting("kl", choices=("kl", "ce"), read=_REHEARSING)
    """`kl`: KL(base || model) on the tokens that the base wrote; `ce`: they are ordinary training
    tokens."""
    weight: float = setting(
        1.0,
        read=Read(
            lambda run: run.rehearsal.uses_kl, f"only if rehearsal.loss is kl, and {_REHEARSES}"
        ),
    )
    """Weight of the rehearsal KL in the loss (`ce` rows are weighted by their share alone)."""
    temperature: float = setting(1.0, at_least=1e-3, read=_REHEARSING)
    """Sampling temperature; 1 = the base's own distribution."""
    prompts: str | None = setting(None, read=_REHEARSING)
    """Text file, one prompt per line, to start sequences from (not the conversations); null = the
    BOS token."""
    batch_size: int = setting(32, at_least=1, read=_REHEARSING)
    """Sequences sampled at a time."""
    cache_dir: str | None = setting(None, read=_REHEARSING)
    """Where sequences are cached; null = <output_dir>/rehearsal."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "rehearsal")

    @property
    def enabled(self) -> bool:
        """Whether the run rehearses at all."""
        return self.num_sequences > 0 and self.share > 0

    @property
    def uses_kl(self) -> bool:
        """Whether rehearsed rows are held to the base's predictions."""
        return self.enabled and self.loss == "kl"
