"""Base and tuned model on one text, token by token: where, and how far, they part.

Two forward passes of one model: as its base, and as its dial stands. Logits (T, V) are large, so
they are made for a part of the positions at a time; a KV cache of each side keeps what was read.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.adapters import as_base, carries_base
from controlllm.common.errors import ModelError
from controlllm.common.losses import next_token_kl
from controlllm.data.examples.special import SpecialNames
from controlllm.inference.generate import PART_TOKENS, last_logits

__all__ = [
    "Choice",
    "TokenChange",
    "answered_chat",
    "answered_text",
    "mean_kl",
    "text_pieces",
    "token_changes",
]

PART_POSITIONS = 128
"""Logits of so many positions are held at a time: at 128k tokens of vocabulary 64 MiB a side."""

CONTEXT_TOKENS = 8
"""A token's text is decoded behind so many others: alone, many tokenizers drop its space."""


@dataclass(frozen=True)
class Choice:
    """The token that a side holds for the likeliest, and its probability."""

    text: str
    probability: float


@dataclass(frozen=True)
class TokenChange:
    """A token of a text, and what both sides thought of it before they had read it.

    Attributes:
        id: the token.
        text: what it adds to the text; "" where its character ends in a later token.
        kl: KL(base || tuned) in nats of the two distributions that predict this token.
        base_logprob: the base's log probability of this token, in nats.
        tuned_logprob: the tuned model's.
        base_choice: the base's likeliest token in its place.
        tuned_choice: the tuned model's.
    """

    id: int
    text: str
    kl: float
    base_logprob: float
    tuned_logprob: float
    base_choice: Choice
    tuned_choice: Choice

    @property
    def change(self) -> float:
        """How much likelier the tuned model finds this token: change of log p, in nats."""
        return self.tuned_logprob - self.base_logprob


@torch.no_grad()
def token_changes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    start: int = 1,
    step: Callable[[], object] = lambda: None,
) -> list[TokenChange]:
    """What base and tuned model predict for the tokens of a text from `start` on.

    The tuned model answers as its dial stands; the dial stays as it is.

    Args:
        model: a model that carries its base (an expansion, or adapters), in evaluation mode.
        tokenizer: its tokenizer.
        ids: the tokens, prompt and answer.
        start: the first token to look at; the very first of a text is predicted by nothing, so 0
            is as 1.
        step: is called before each part of the text; what it raises ends the work.

    Raises:
        ModelError: the model carries no base.
    """
    if not carries_base(model):
        raise ModelError("This model has no expansion and no adapters: it has no base to compare.")
    start = max(start, 1)
    sides = _Side(model, lambda: as_base(model)), _Side(model, nullcontext)
    for begin in range(0, start - 1, PART_TOKENS):
        for side in sides:
            step()
            side.read(ids[begin : min(begin + PART_TOKENS, start - 1)], keep=1)
    texts = text_pieces(tokenizer, ids, start)
    changes: list[TokenChange] = []
    for begin in range(start - 1, len(ids) - 1, PART_POSITIONS):
        end = min(begin + PART_POSITIONS, len(ids) - 1)
        step()
        base_TV, tuned_TV = (side.read(ids[begin:end], keep=end - begin) for side in sides)
        changes += _changes(tokenizer, base_TV, tuned_TV, ids, begin + 1, texts[len(changes) :])
    return changes


def answered_chat(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], answer: str
) -> tuple[list[int], int]:
    """The tokens of a rendered conversation and an answer, and where the answer begins.

    Names of special tokens in the answer are text.
    """
    names = SpecialNames.of(tokenizer)
    if names.stand_in(answer):
        ids = names.encode(answer, add_special_tokens=False)
    else:
        ids = tokenizer(answer, add_special_tokens=False).input_ids
    return [*prompt, *ids], len(prompt)


def answered_text(prompt: Sequence[int], whole: Sequence[int]) -> tuple[list[int], int]:
    """The tokens of a text that was continued, and the first that is not the prompt's alone.

    Args:
        prompt: the tokens of its beginning.
        whole: the tokens of all of it: they may differ where the two meet.
    """
    pairs = zip(prompt, whole, strict=False)
    shared = next((place for place, (a, b) in enumerate(pairs) if a != b), len(prompt))
    return [*whole], min(shared, len(whole))


def mean_kl(changes: Sequence[TokenChange]) -> float:
    """Mean KL(base || tuned) per token, in nats; nan without tokens."""
    return math.fsum(change.kl for change in changes) / len(changes) if changes else math.nan


def text_pieces(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], start: int = 0
) -> list[str]:
    """What each token from `start` on adds to the text; joined they are the text.

    A character whose bytes lie in several tokens belongs to the last of them. Special tokens are
    shown by their names.
    """
    pieces, waiting = [], start
    for end in range(start + 1, len(ids) + 1):
        context = [*ids[max(0, waiting - CONTEXT_TOKENS) : waiting]]
        before = str(tokenizer.decode(context))
        text = str(tokenizer.decode([*context, *ids[waiting:end]]))[len(before) :]
        whole = not text.endswith("\ufffd") or end == len(ids)
        pieces.append(text if whole else "")
        waiting = end if whole else waiting
    return pieces


class _Side:
    """One of the two models, and what it remembers of the text read so far."""

    def __init__(
        self, model: PreTrainedModel, inside: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.model: Any = model
        self.inside = inside
        self.cache: Any = None
        self.unread: list[int] = []

    def read(self, ids: Sequence[int], keep: int) -> Tensor:
        """Read on; logits (keep, V) of the last positions."""
        self.unread += ids
        ids_BT = torch.tensor([self.unread], device=self.model.device)
        few = last_logits(self.model, keep)
        with self.inside():
            output = self.model(ids_BT, past_key_values=self.cache, use_cache=True, **few)
        self.cache = getattr(output, "past_key_values", None)
        if self.cache is not None:  # A model whose memory is no such cache reads all of it again.
            self.unread = []
        logits_TV: Tensor = output.logits[0, -keep:]
        return logits_TV


def _changes(
    tokenizer: PreTrainedTokenizerBase,
    base_TV: Tensor,
    tuned_TV: Tensor,
    ids: Sequence[int],
    start: int,
    texts: Sequence[str],
) -> list[TokenChange]:
    """The changes of one part, which begins at `start`; `texts` are what its tokens add."""
    # KL is never below 0; rounding may be.
    kl = next_token_kl(base_TV, tuned_TV).clamp(min=0).tolist()
    sides = [logits_TV.float().log_softmax(-1) for logits_TV in (base_TV, tuned_TV)]
    targets = torch.tensor(ids[start : start + len(kl)], device=base_TV.device)[:, None]
    of = [side.gather(1, targets)[:, 0].tolist() for side in sides]
    best = [side.max(-1) for side in sides]
    changes = []
    for place, own in enumerate(kl):
        context = [*ids[max(0, start + place - CONTEXT_TOKENS) : start + place]]
        choices = [
            _choice(tokenizer, context, int(side.indices[place]), float(side.values[place]))
            for side in best
        ]
        id = ids[start + place]
        changes.append(TokenChange(id, texts[place], own, of[0][place], of[1][place], *choices))
    return changes


def _choice(
    tokenizer: PreTrainedTokenizerBase, context: list[int], id: int, logprob: float
) -> Choice:
    (text,) = text_pieces(tokenizer, [*context, id], len(context))
    return Choice(text, math.exp(logprob))
