"""Own text as held-out sets.

settings, seed of a block --> plan --read_or_write--> tokens --> Examples --> batches
"""

import logging
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.context import context_of
from controlllm.common.errors import ConfigError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.data import DataConfig, Example
from controlllm.evaluate.forgetting.own import OWN_TEXT
from controlllm.evaluate.own_text.cache import Written, read_or_write
from controlllm.evaluate.own_text.chat import has_template, template_parts, turn_ends
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
_LEAST_TURN = 4
"""Tokens of a turn, below which there is no room for a conversation."""


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
    chat = _chat_plan(writer.model, tokenizer, settings, data, length, block)
    if chat is not None:
        plans[OWN_TEXT_CHAT] = chat
    place = Path(folder)
    return {
        name: _examples(read_or_write(writer, plan, place, "own text: the model"))
        for name, plan in plans.items()
    }


def _examples(written: Written) -> list[Example]:
    examples = []
    for tokens, spans in zip(written.sequences, written.spans, strict=True):
        ids = np.array(tokens, dtype=np.int32)
        labels = np.full_like(ids, IGNORE_INDEX)
        for start, end in spans:
            labels[start:end] = ids[start:end]
        examples.append(Example(ids, labels))
    return examples


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


def _chat_plan(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: OwnTextConfig,
    data: DataConfig,
    length: int,
    block: int,
) -> ChatPlan | None:
    """None where no set is to be written behind the template; ConfigError where it cannot be."""
    if settings.chat is False or (settings.chat is None and not has_template(tokenizer, data)):
        return None
    try:
        before, between = template_parts(tokenizer, data)
        room = length - len(before) - len(between)
        question = room // 4  # Answers are the longer part.
        if question < _LEAST_TURN:
            raise ConfigError(
                f"own_text.chat: the template alone takes {length - room} of {length} tokens, "
                "which leaves no room for a conversation; raise own_text.length."
            )
    except ConfigError as error:
        if settings.chat:
            raise
        log.warning("No own text is written behind the chat template: %s", error)
        return None
    return ChatPlan(
        num_sequences=settings.num_sequences,
        question=question,
        answer=room - question,
        batch_size=settings.batch_size,
        seed=block_seed(OWN_TEXT_CHAT, settings.seed, block),
        before=before,
        between=between,
        ends=turn_ends(model, tokenizer, between),
    )
