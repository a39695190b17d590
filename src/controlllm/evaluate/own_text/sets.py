"""Own text as held-out sets, from the cache if it is there.

    Writer --plan, seed of a block--> tokens, and which the model wrote --> Examples --> batches
                                           |
                                     <folder>/<key>.json

The key is a hash of writer and plan, as that of rehearsal.
"""

import hashlib
import logging
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.context import context_of
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.losses import IGNORE_INDEX
from controlllm.common.storage.files import read_json, write_json
from controlllm.common.storage.schema import check_record
from controlllm.data import DataConfig, Example
from controlllm.evaluate.forgetting.own import OWN_TEXT
from controlllm.evaluate.own_text.chat import (
    has_template,
    template_parts,
    turn_ends,
    write_chats,
)
from controlllm.evaluate.own_text.plan import (
    ChatPlan,
    SamplingPlan,
    block_seed,
    read_prompts,
    start_token,
)
from controlllm.evaluate.own_text.settings import OWN_TEXT_CHAT, OwnTextConfig
from controlllm.evaluate.own_text.writing import Writer, sample_sequences

__all__ = ["write_own_text"]

log = logging.getLogger(__name__)

_LENGTH = 512
_LEAST_TURN = 4
"""Tokens of a turn, below which there is no room for a conversation."""


class Written(TypedDict):
    """Sequences as they lie in the cache."""

    sequences: list[list[int]]
    """Token ids of each."""
    written: list[list[list[int]]]
    """Where [start, end) the model wrote them, the rest being prompts and template."""


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
    read = partial(_read_or_write, writer, Path(folder))
    sets = {OWN_TEXT: read(_plain_plan(tokenizer, settings, length, block))}
    chat = _chat_plan(writer.model, tokenizer, settings, data, length, block)
    if chat is not None:
        sets[OWN_TEXT_CHAT] = read(chat)
    return sets


def _read_or_write(writer: Writer, folder: Path, plan: SamplingPlan | ChatPlan) -> list[Example]:
    key = hashlib.sha256(f"{writer.key}{plan}".encode()).hexdigest()[:24]
    path = folder / f"{key}.json"
    if path.is_file():
        log.info("Own text: %d sequences from %s", plan.num_sequences, path)
        return _examples(read_json(path), writer.model, path)
    log.info("Own text: the model writes %d sequences", plan.num_sequences)
    if isinstance(plan, ChatPlan):
        chats = write_chats(writer, plan)
        written = Written(sequences=[c[0] for c in chats], written=[c[1] for c in chats])
    else:
        sequences = sample_sequences(writer, plan, "own text: the model writes")
        starts = [len(plan.prompts[i % len(plan.prompts)]) for i in range(len(sequences))]
        spans = [[[start, len(s)]] for start, s in zip(starts, sequences, strict=True)]
        written = Written(sequences=sequences, written=spans)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, written, indent=None)
    return _examples(written, writer.model, path)


def _examples(written: Any, model: PreTrainedModel, path: Path) -> list[Example]:
    """Sequences as examples; the file may be anybody's (CheckpointError)."""
    check_record(written, Written, path)
    rows, places = written["sequences"], written["written"]
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if len(rows) != len(places) or not all(
        row and min(row) >= 0 and max(row) < vocabulary for row in rows
    ):
        raise CheckpointError(f"{path} holds no sequences of this model's tokens; remove the file.")
    examples = []
    for tokens, spans in zip(rows, places, strict=True):
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
