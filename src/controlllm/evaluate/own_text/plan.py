"""All that decides what a model writes."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError

__all__ = ["ChatPlan", "SamplingPlan", "block_seed", "read_prompts", "start_token"]


@dataclass(frozen=True)
class SamplingPlan:
    """Sequences from prompts, or from a token that begins texts."""

    num_sequences: int  # how many sequences
    length: int  # most tokens of one, its prompt included
    temperature: float  # of sampling
    batch_size: int  # sequences sampled at a time (it takes part in the random numbers)
    seed: int  # of sampling
    prompts: tuple[tuple[int, ...], ...]  # token ids that sequences start with, taken in turn
    end: int | None  # token that ends a sequence; None = every sequence has full length

    @property
    def key(self) -> str:
        """Tells a plan from all others."""
        return str(self)


@dataclass(frozen=True)
class ChatPlan:
    """Conversations: a user's turn, then the answer."""

    num_sequences: int  # how many conversations
    question: int  # most tokens of the user's turn
    answer: int  # most tokens of the answer
    batch_size: int  # conversations sampled at a time
    seed: int  # of sampling
    before: tuple[int, ...]  # the template's tokens before the user's turn
    between: tuple[int, ...]  # and those between it and the answer
    ends: tuple[int, ...]  # tokens that end a turn
    temperature: float = field(default=1.0, repr=False)  # of sampling

    @property
    def key(self) -> str:
        """Tells a plan from all others; at temperature 1 as before there was another one."""
        return str(self) if self.temperature == 1 else f"{self} at {self.temperature}"

    @property
    def length(self) -> int:
        """Most tokens of a whole conversation."""
        return len(self.before) + self.question + len(self.between) + self.answer


def block_seed(what: str, seed: int, block: int) -> int:
    """The seed of a block of what is written: own text and rehearsal never share one."""
    told = f"{what} {seed} {block}"
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:4], "big")


def start_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a text without a prompt starts with: BOS, or EOS; None without either."""
    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next((token for token in starts if token is not None), None)


def read_prompts(
    tokenizer: PreTrainedTokenizerBase, path: str | None, section: str
) -> tuple[tuple[int, ...], ...]:
    """The lines of a prompt file in tokens; without a file the one token that begins texts.

    Raises:
        ConfigError: there is nothing to start from; `section` is the config section, for messages.
    """
    if path is None:
        start = start_token(tokenizer)
        if start is None:
            raise ConfigError(
                "the tokenizer has neither a BOS nor an EOS token to start sequences from; "
                f"name a file of prompts, one per line, as {section}.prompts."
            )
        return ((start,),)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot read {section}.prompts={path!r}: {why}.") from error
    prompts = tuple(tuple(tokenizer(line).input_ids) for line in lines if line.strip())
    if not prompts:
        raise ConfigError(f"{section}.prompts={path!r} holds no prompt; give one per line.")
    return prompts
