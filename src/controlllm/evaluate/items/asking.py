"""Ask a model: requests in chunks that are always cut alike, dealt over processes, kept at once."""

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from controlllm.common.context import context_of
from controlllm.common.distributed import ALONE, Ranks
from controlllm.common.errors import ConfigError, LostRankError
from controlllm.common.text.progress import progress
from controlllm.evaluate.items.quiet_harness import quiet_harness
from controlllm.evaluate.items.store import Answer, AnswerStore, Request

__all__ = ["AnswerBook", "Answering", "live_model"]

CHUNK = 8
"""Batches of one chunk: what is asked and written together, and lost if a process is killed."""


class Answering(Protocol):
    """What answers requests: a live model, or another engine."""

    batch_size: int
    room: int
    """Longest input in tokens."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests of one kind and one setting, in their order."""
        ...

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages behind the model's chat template."""
        ...


@dataclass
class AnswerBook:
    """All answers of one model: those that are kept, and the model for the others.

    Attributes:
        model: answers what is not kept.
        store: where answers are kept.
        label: what the progress line calls the model.
        ranks: the processes that share the work; each has the whole model.
        seconds: that asking took.
        asked: how many answers were not kept before.
    """

    model: Answering
    store: AnswerStore
    label: str
    ranks: Ranks = ALONE
    seconds: float = 0.0
    asked: int = 0

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers to requests of one kind, in their order. Collective.

        Chunks are cut from all requests, kept or not: so the numbers are the same to the last bit
        for one process or many, and after a kill.

        Raises:
            ControlLLMError: a process failed; every process has an error then.
        """
        chunks = list(self._chunks(requests))
        if self.ranks.rank == 0:
            self.store.refresh()
        todo: list[int] = self.ranks.first(
            lambda: [i for i, chunk in enumerate(chunks) if any(map(self._lacks, chunk))]
        )
        started, world = time.monotonic(), self.ranks.world_size
        with progress(f"asking {self.label}", "requests", sum(len(chunks[i]) for i in todo)) as bar:
            for begin in range(0, len(todo), world):
                mine = todo[begin + self.ranks.rank : begin + world][:1]
                found, error = _attempt(lambda: [self._answer(chunks[i]) for i in mine])  # noqa: B023
                self.ranks.agree(error)
                told = [pairs for part in self.ranks.gather(found) for pairs in part]
                new = [pair for pairs in told for pair in pairs]
                self._keep(new)
                bar.show(bar.done + len(new))
                self.asked += len(new)
        self.seconds += time.monotonic() - started if todo else 0.0
        if world > 1:
            self._share([request for chunk in chunks for request in chunk])
        return [self._found(request) for request in requests]

    def _keep(self, pairs: list[tuple[Request, Answer]]) -> None:
        """The first process writes; the others remember."""
        error = None
        if self.ranks.rank == 0:
            _, error = _attempt(lambda: self.store.add(pairs))
        else:
            self.store.remember(pairs)
        self.ranks.agree(error)

    def _share(self, requests: list[Request]) -> None:
        """What the first process read, others may have read before it was written."""
        known = self.ranks.first(lambda: [(one, self._found(one)) for one in set(requests)])
        if self.ranks.rank:
            self.store.remember(known)

    def _answer(self, chunk: Sequence[Request]) -> list[tuple[Request, Answer]]:
        return list(zip(chunk, self.model.answer(chunk), strict=True))

    def _lacks(self, request: Request) -> bool:
        return self.store.get(request) is None

    def _found(self, request: Request) -> Answer:
        answer = self.store.get(request)
        if answer is None:  # Somebody removed it from under us.
            raise LostRankError(f"an answer of {self.label} is gone from {self.store.folder}.")
        return answer

    def _chunks(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Longest first, those with one prompt together, each request once."""
        by_settings: dict[tuple[str, str], list[Request]] = {}
        for request in dict.fromkeys(requests):
            by_settings.setdefault((request.kind, request.settings), []).append(request)
        size = CHUNK * self.model.batch_size
        for alike in by_settings.values():
            alike.sort(key=lambda one: (-len(one.prompt), one.prompt, -len(one.continuation)))
            # Of texts a chunk is one batch: they take long.
            step = self.model.batch_size if alike[0].kind == "text" else size
            for begin in range(0, len(alike), step):
                yield alike[begin : begin + step]


def live_model(
    model: nn.Module, tokenizer: Any, batch_size: int, max_length: int | None = None
) -> Answering:
    """A model of transformers in this process, asked as lm-evaluation-harness asks it.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: is copied, as the harness sets padding on it.
        batch_size: sequences per forward pass.
        max_length: longest input in tokens; None = the model's own.
    """
    from lm_eval.models.huggingface import HFLM

    class Live(HFLM):
        """The harness's model, which also notes what was cut off."""

        ended: list[bool]

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **kw: Any) -> Any:
            output = super()._model_generate(context, max_length, stop, **kw)
            rows = output[:, context.shape[1] :].tolist()
            self.ended += [self._is_ended(row, stop) for row in rows]
            return output

        def _is_ended(self, row: list[int], stop: list[str]) -> bool:
            if self.eot_token_id in row:
                return True
            text = self.tok_decode(row, skip_special_tokens=False)
            return any(word in text for word in stop if word)

    with quiet_harness():
        harness = Live(
            pretrained=model,
            backend="causal",
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            max_length=max_length or context_of(model),
        )
    return _LiveModel(harness, batch_size)


class _LiveModel:
    def __init__(self, harness: Any, batch_size: int) -> None:
        self.harness = harness
        self.batch_size = batch_size
        self.room = int(harness.max_length)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        kind = requests[0].kind
        if kind == "text":
            return self._write(requests)
        arguments = [
            (one.prompt, one.continuation)[: 2 if kind == "likelihood" else 1] for one in requests
        ]
        asked = [_Asked(one) for one in arguments]
        if kind == "rolling":
            values = self.harness.loglikelihood_rolling(asked, disable_tqdm=True)
            return [Answer(log_likelihood=float(value)) for value in values]
        found = self.harness.loglikelihood(asked, disable_tqdm=True)
        return [Answer(log_likelihood=float(ll), greedy=bool(greedy)) for ll, greedy in found]

    def _write(self, requests: Sequence[Request]) -> list[Answer]:
        settings = json.loads(requests[0].settings)
        most = int(settings.get("max_gen_toks", self.harness.max_gen_toks))
        if most >= self.room:
            raise ConfigError(
                f"answers of up to {most} tokens do not fit into the model's {self.room}: set "
                "--max_new_tokens to less."
            )
        # In the harness's own order, so that what is noted stands in the order of what it returns.
        order = sorted(
            range(len(requests)),
            key=lambda i: (-len(self.harness.tok_encode(requests[i].prompt)), requests[i].prompt),
        )
        self.harness.ended = []
        if settings.get("do_sample"):
            torch.manual_seed(int(requests[order[0]].key[:15], 16))
        asked = [_Asked((requests[i].prompt, dict(settings))) for i in order]
        texts = self.harness.generate_until(asked, disable_tqdm=True)
        answers: list[Any] = [None] * len(requests)
        for place, i in enumerate(order):
            answers[i] = Answer(text=texts[place], cut_off=not self.harness.ended[place])
        return answers

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        rendered: str = self.harness.apply_chat_template(messages, add_generation_prompt)
        return rendered


@dataclass(frozen=True)
class _Asked:
    """A request as the harness takes it."""

    args: tuple[Any, ...]


def _attempt(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return make(), None
    except Exception as error:
        return [], error
