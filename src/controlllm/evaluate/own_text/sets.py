"""Own text as held-out sets.

settings, seed of a block --> plan --read_or_write--> tokens --> Examples --> batches
"""

import logging
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.context import context_of
from controlllm.common.errors import ConfigError
from controlllm.data import DataConfig, Example
from controlllm.evaluate.forgetting.own import OWN_TEXT
from controlllm.evaluate.own_text.cache import read_or_write
from controlllm.evaluate.own_text.chat import Asked, chat_plan
from controlllm.evaluate.own_text.plan import (
    ChatPlan,
    SamplingPlan,
    block_seed,
    read_prompts,
    start_token,
)
from controlllm.evaluate.own_text.settings import OWN_TEXT_CHAT, OwnTextConfig
from controlllm.evaluate.own_text.writing import Writer

__all__ = ["write_own_text"]

log = logging.getLogger(__name__)

_LENGTH = 512


def write_own_text(
    writer: Writer,
    tokenizer: PreTrainedTokenizerBase,
    settings: OwnTextConfig,
    data: DataConfig,
    folder: str | Path,
    block: int = 0,
) -> dict[str, list[Example]]:
    """What the writer writes by itself, as held-out examples by the name of their set.

    The same block is the same text on the same machine; other blocks are other sequences, for who
    needs more. Only what the model wrote is a target. `eval_batches` makes batches of examples.

    Args:
        writer: who writes: a base, or a model as it was trained.
        tokenizer: of the writer.
        settings: how much, from what, and whether behind the chat template, too.
        data: its `max_length` and `chat_template` are used.
        folder: where sequences are cached.
        block: which `settings.num_sequences` of all that the seed could give.

    Returns:
        `own_text`, and `own_text_chat` where there is a template; nothing, and it is told, where
        the tokenizer has no token to start from and own text was not asked for.

    Raises:
        ConfigError: there is nothing to start from, or sequences would not fit.
        CheckpointError: a file of the cache holds something else.
    """
    length = _length(writer.model, settings, data)
    asked = settings.measure or settings.prompts is not None
    if not asked and start_token(tokenizer) is None:
        log.warning(
            "Own text is not measured: the tokenizer has neither a BOS nor an EOS token to start "
            "it from. Name a file of prompts, one per line, as own_text.prompts."
        )
        return {}
    plans: dict[str, SamplingPlan | ChatPlan] = {
        OWN_TEXT: _plain_plan(tokenizer, settings, length, block)
    }
    limit = "data.max_length" if settings.length is None else "own_text.length"
    asked_chat = Asked(settings.chat, "own_text.chat", "own_text.chat=false", limit)
    chat = chat_plan(
        asked_chat, writer.model, tokenizer, data, length,
        num_sequences=settings.num_sequences, batch_size=settings.batch_size,
        seed=block_seed(OWN_TEXT_CHAT, settings.seed, block),
    )  # fmt: skip
    if chat is not None:
        plans[OWN_TEXT_CHAT] = chat
    place = Path(folder)
    return {
        name: read_or_write(writer, plan, place, "own text: the model").examples()
        for name, plan in plans.items()
    }


def _length(model: PreTrainedModel, settings: OwnTextConfig, data: DataConfig) -> int:
    """Most tokens of a sequence (ConfigError)."""
    context = context_of(model)
    if settings.length is None:
        return min(_LENGTH, data.max_length, context or _LENGTH)
    for what, most in (("data.max_length", data.max_length), ("the model's context", context)):
        if most is not None and settings.length > most:
            raise ConfigError(f"own_text.length={settings.length} is more than {what} ({most}).")
    return settings.length


def _plain_plan(
    tokenizer: PreTrainedTokenizerBase, settings: OwnTextConfig, length: int, block: int
) -> SamplingPlan:
    prompts = read_prompts(tokenizer, settings.prompts, "own_text")
    longest = max(map(len, prompts))
    if longest >= length:
        raise ConfigError(
            f"own_text.prompts has a prompt of {longest} tokens, which leaves no room in sequences "
            f"of {length}; shorten the prompt or raise own_text.length."
        )
    return SamplingPlan(
        num_sequences=settings.num_sequences,
        length=length,
        temperature=1.0,
        batch_size=settings.batch_size,
        seed=block_seed(OWN_TEXT, settings.seed, block),
        prompts=prompts,
        end=tokenizer.eos_token_id,
    )
