"""The same behind a chat template: a user's turn, then the answer.

template's words | what the model writes as the user | template's words | what it answers
context            targets                             context            targets
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.export.chat_facts import eos_ids
from controlllm.common.errors import ConfigError, DataError
from controlllm.data import DataConfig, resolve_chat_template
from controlllm.data.examples.render import Renderer
from controlllm.data.examples.templates import TEMPLATES
from controlllm.evaluate.own_text.plan import ChatPlan
from controlllm.evaluate.own_text.writing import Writer, continue_prompts, sampling

__all__ = ["Asked", "chat_plan", "has_template", "write_chats"]

log = logging.getLogger(__name__)

_LEAST_TURN = 4
"""Tokens of a turn, below which there is no room for a conversation."""

MARK = "\ue0f4own text\ue0f5"
"""Stands for the user's turn while the template is rendered; no template has it."""


def has_template(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> bool:
    """Whether there is a chat template that is not our stand-in for none, `plain`."""
    template = resolve_chat_template(data.chat_template, tokenizer)
    return template != TEMPLATES.get("plain")(tokenizer)


@dataclass(frozen=True)
class Asked:
    """What a config says of conversations.

    Attributes:
        there: whether they are to be written; None = where there is a template that allows it.
        where: the setting that says so, for messages.
        off: how it says that there are none.
        room: the setting that gives them their room.
    """

    there: bool | None
    where: str
    off: str
    room: str


def chat_plan(
    asked: Asked,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    length: int,
    **drawn: Any,
) -> ChatPlan | None:
    """The plan of conversations of at most `length` tokens; None where none are to be written.

    Args:
        asked: whether.
        model: that writes.
        tokenizer: its tokenizer.
        data: its `chat_template` is used.
        length: most tokens of a conversation, the template's included.
        drawn: `num_sequences`, `batch_size`, `seed`, `temperature` of a `ChatPlan`.

    Raises:
        ConfigError: they were asked for, and there is no room or the template does not allow it.
    """
    if asked.there is False or (asked.there is None and not has_template(tokenizer, data)):
        return None
    try:
        before, between = _template_parts(tokenizer, data, asked)
        room = length - len(before) - len(between)
        question = room // 4  # Answers are the longer part.
        if question < _LEAST_TURN:
            raise ConfigError(
                f"{asked.where}: the template alone takes {length - room} of {length} tokens, which"
                f" leaves no room for a conversation; raise {asked.room}, or set {asked.off}."
            )
    except ConfigError as error:
        if asked.there:
            raise
        log.warning("Nothing is written behind the chat template: %s", error)
        return None
    return ChatPlan(
        question=question,
        answer=room - question,
        before=before,
        between=between,
        ends=_turn_ends(model, tokenizer, between),
        **drawn,
    )


def _template_parts(
    tokenizer: PreTrainedTokenizerBase, data: DataConfig, asked: Asked
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of the chat template before a user's first turn, and from there to the answer.

    Raises:
        ConfigError: the template refuses such a conversation, or does not show the turn as it is.
    """
    try:
        text = Renderer(tokenizer, data).prompt([{"role": "user", "content": MARK}])
    except DataError as error:
        raise ConfigError(f"{asked.where}: {error}") from error
    before, found, between = text.partition(MARK)
    if not found or MARK in between:
        raise ConfigError(
            f"{asked.where}: the chat template does not show a user's turn once, as it is; "
            f"set {asked.off}."
        )
    parts = (tokenizer(part, add_special_tokens=False).input_ids for part in (before, between))
    own, rest = map(tuple, parts)
    if not own:  # Something has to be there for the first token to follow.
        raise ConfigError(
            f"{asked.where}: the chat template has no words before a user's turn that the model "
            f"could go on from; set {asked.off}."
        )
    return own, rest


def _turn_ends(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, between: Iterable[int]
) -> tuple[int, ...]:
    """Tokens that end a turn: of the model's configs, the tokenizer, and a template's own mark."""
    generation: Any = getattr(model, "generation_config", None)
    ends = eos_ids(model.config.get_text_config(decoder=True).eos_token_id)
    ends |= eos_ids(getattr(generation, "eos_token_id", None))
    ends |= eos_ids(tokenizer.eos_token_id)
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ends |= {token for token in [*between][:1] if token in special}
    return tuple(sorted(ends))


def write_chats(
    writer: Writer, plan: ChatPlan, told: str
) -> list[tuple[list[int], list[list[int]]]]:
    """Conversations of a plan; `told` says what is going on, for the progress.

    Returns:
        Token ids of each, and where [start, end) the model wrote them.
    """
    written = []
    before, between = list(plan.before), list(plan.between)
    for rows, watch in sampling(writer, plan, plan.length, told):

        def go_on(prompts: list[list[int]], tokens: int, watch: Any = watch) -> list[list[int]]:
            return continue_prompts(
                writer.model, prompts, tokens, plan.ends, plan.temperature, watch
            )

        questions = go_on([before] * len(rows), plan.question)
        # Where the model ended its turn as the template does, that token is there already.
        rest = [between[1:] if q[-1:] == between[:1] else between for q in questions]
        contexts = [[*before, *q, *r] for q, r in zip(questions, rest, strict=True)]
        answers = go_on(contexts, plan.answer)
        for question, context, answer in zip(questions, contexts, answers, strict=True):
            start = len(before)
            spans = [[start, start + len(question)], [len(context), len(context) + len(answer)]]
            written.append(([*context, *answer], spans))
    return written
