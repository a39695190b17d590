"""Self-rehearsal: before training, the base writes down what it knows.

    base --sample N sequences--> cache (addressed by base and settings) --> TokenStore
                                                                              |
    TrainLoader(..., rehearsal=(source, share)) mixes them into each batch <--'

Of a base with a chat template half of them are conversations behind it (`rehearsal.chat_share`): a
user's turn and the answer, both of its own. Only what it wrote is rehearsed, not the template.

Where a run goes on from others, each of these stages writes as many; what a stage wrote is kept
beside its own run, where later runs find it. With `rehearsal.max_epochs` they write as often as N
more, each part with its own seed and cache, as the length of the run needs when it begins.

During training they are rehearsed by KL to the base's own predictions (those of the stage right
before, where there is one), or as ordinary training rows
(docs/method.md §9). Sampling has its own seed and leaves the process's random state alone.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.context import context_of
from controlllm.common.errors import ConfigError
from controlllm.data import Example, TokenStore
from controlllm.evaluate.own_text import (
    OWN_TEXT,
    Asked,
    ChatPlan,
    SamplingPlan,
    Writer,
    block_seed,
    chat_plan,
    read_or_write,
    read_prompts,
)
from controlllm.train.config.config_io import read_yaml
from controlllm.train.config.run_config import RunConfig
from controlllm.train.setup.sizing import sequences_rehearsed
from controlllm.train.setup.ways.contract import BASE, Stage
from controlllm.train.setup.ways.earlier import lies_inside

__all__ = ["rehearsal_source"]

log = logging.getLogger(__name__)

_CHAT_SHARE = 0.5
"""Of a base with a chat template: docs/results/rehearsed-text.md."""


def rehearsal_source(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: RunConfig,
    stages: Sequence[Stage] = (),
    steps: int | None = None,
    world_size: int = 1,
    begun: int | None = None,
) -> TokenStore:
    """The sequences of all stages as a source for the train loader, from caches if they are there.

    Args:
        model: that trains; it may carry the base (expanded, or with adapters). The base writes, and
            each stage that the run goes on from.
        tokenizer: its tokenizer.
        run: the run config.
        stages: the base and earlier runs, where the run goes on from one.
        steps: of the run, where it begins and `rehearsal.max_epochs` is given.
        world_size: processes with rows of their own.
        begun: how many sequences the run has begun with, where it goes on: it keeps them, whatever
            the number of processes now.

    Raises:
        ConfigError: if there is nothing to start from, or sequences would not fit.
    """
    own = Path(run.rehearsal.cache_dir or Path(run.training.output_dir) / "rehearsal")
    every = stages or (Stage(BASE),)
    places = [
        own,
        *(s.folder / name for s in every if s.folder for name in (OWN_TEXT, "rehearsal")),
    ]
    parts = []
    for stage in every:
        folder = own if run.rehearsal.cache_dir else stage.folder_of_text(own)
        who = "the base" if stage.name == BASE else f"the stage {stage.name}"
        # One writer for all parts: the key of a base is a hash of all its weights.
        writer = stage.writer(model)
        plans = _make_plans(writer.model, tokenizer, run, _prompts_of(stage, run))
        parts.append(partial(_part, writer, plans, folder, f"rehearsal: {who}", places))
    firsts = [part(0) for part in parts]
    number = first = run.rehearsal.num_sequences
    if begun is not None:
        number = begun // len(every)
    elif steps is not None:
        tokens = sum(len(example) for one in firsts for example in one.examples)
        read = sequences_rehearsed(run, steps, tokens / len(every) / first, world_size)
        number = _number(run, read / len(every), sum(one.seconds for one in firsts))
    written = []
    for part, one in zip(parts, firsts, strict=True):
        more = [part(block).examples for block in range(1, math.ceil(number / first))]
        written.append([*chain(one.examples, *more)][:number])
    together = [example for same in zip(*written, strict=True) for example in same]
    return TokenStore.from_examples("rehearsal", together)


def _number(run: RunConfig, read: float, seconds: float) -> int:
    """How many sequences each stage writes in all, of which the run reads so many, some repeatedly.

    `seconds` is what the first `num_sequences` of all took, 0 where they were there.
    """
    rehearsal = run.rehearsal
    assert rehearsal.max_epochs is not None
    first, wished = rehearsal.num_sequences, math.ceil(read / rehearsal.max_epochs)
    number = max(first, min(wished, rehearsal.max_sequences))
    if number < wished:
        log.warning(
            "rehearsal.max_sequences=%d is below the %d that rehearsal.max_epochs=%g asks for: "
            "the run reads each about %.1f times.",
            rehearsal.max_sequences,
            wished,
            rehearsal.max_epochs,
            read / number,
        )
    if number > first:
        log.info(
            "Rehearsal: the run reads about %d sequences; %d more than the first %d make that at "
            "most %.3g times each%s",
            round(read),
            number - first,
            first,
            read / number,
            f", and take about {seconds * (number / first - 1):.0f} s." if seconds else ".",
        )
    return number


@dataclass(frozen=True)
class _Part:
    """A block of what a stage wrote, and the seconds it took: 0 where it was there."""

    examples: list[Example]
    seconds: float


def _part(
    writer: Writer,
    plans: tuple[SamplingPlan, ChatPlan | None],
    folder: Path,
    who: str,
    elsewhere: Sequence[Path],
    block: int,
) -> _Part:
    """A block of the sequences of a stage, conversations evenly among them."""
    plain, chat = plans
    if block:
        plain = replace(plain, seed=block_seed("rehearsal", plain.seed, block))
    written = read_or_write(writer, plain, folder, who, elsewhere)
    # Prompts are rehearsed, too; of a conversation what the template says is not.
    examples = [Example.whole(tokens) for tokens in written.sequences]
    if chat is None:
        return _Part(examples, written.seconds)
    chat = replace(chat, seed=block_seed("rehearsal chat", chat.seed, block))
    chats = read_or_write(writer, chat, folder, who, elsewhere)
    number = len(examples) + chat.num_sequences
    for place, example in enumerate(chats.examples()):
        examples.insert(place * number // chat.num_sequences, example)
    return _Part(examples, written.seconds + chats.seconds)


def _prompts_of(stage: Stage, run: RunConfig) -> str | None:
    """The prompt file of what a stage writes: its own run's, where that is known and there."""
    if stage.folder is None:
        return run.rehearsal.prompts
    path = stage.folder / "config.yaml"
    section = (read_yaml(path) if path.is_file() else {}).get("rehearsal") or {}
    prompts = section.get("prompts") if isinstance(section, dict) else None
    if prompts is None:
        return None
    if not Path(str(prompts)).is_file():
        why = "is not there"
    elif run.continue_trust or lies_inside(str(prompts), stage.folder):
        return str(prompts)
    else:
        why = "lies outside of its folder (continue_trust=true takes it, if you know that run)"
    log.warning(
        "rehearsal.prompts=%r of the stage %s %s; it writes without prompts.",
        prompts,
        stage.name,
        why,
    )
    return None


def _make_plans(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: RunConfig,
    prompt_file: str | None,
) -> tuple[SamplingPlan, ChatPlan | None]:
    """Of the plain sequences and of the conversations, `num_sequences` together."""
    rehearsal = run.rehearsal
    length = rehearsal.length or run.data.max_length
    prompts = read_prompts(tokenizer, prompt_file, "rehearsal")
    limit = context_of(model) or length
    setting = "rehearsal.length" if rehearsal.length else "data.max_length"
    for what, most in (("data.max_length", run.data.max_length), ("the model's context", limit)):
        if length > most:
            raise ConfigError(f"{setting}={length} is more than {what} ({most}).")
    longest = max(len(prompt) for prompt in prompts)
    if longest >= length:
        raise ConfigError(
            f"rehearsal.prompts has a prompt of {longest} tokens, which leaves no room in "
            f"{setting}={length}; shorten the prompt or raise the length."
        )
    share = rehearsal.chat_share
    # Behind a template that is not the base's own, or from prompts, nobody asked for conversations.
    own = run.data.chat_template is None and prompt_file is None
    wished = (_CHAT_SHARE if own else 0.0) if share is None else share
    number = min(round(rehearsal.num_sequences * wished), rehearsal.num_sequences - 1)
    if share and not number:
        raise ConfigError(
            f"rehearsal.chat_share={share:g} of rehearsal.num_sequences="
            f"{rehearsal.num_sequences} is no conversation; raise one of them."
        )
    drawn: dict[str, Any] = {
        "temperature": rehearsal.temperature,
        "batch_size": rehearsal.batch_size,
        "seed": run.training.seed,
    }
    asked = Asked(
        None if share is None and number else bool(number),
        "rehearsal.chat_share",
        "rehearsal.chat_share=0",
        setting,
    )
    chat = chat_plan(asked, model, tokenizer, run.data, length, num_sequences=number, **drawn)
    plain = SamplingPlan(
        num_sequences=rehearsal.num_sequences - (0 if chat is None else number),
        length=length,
        prompts=prompts,
        end=tokenizer.eos_token_id,
        **drawn,
    )
    return plain, chat
