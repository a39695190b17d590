"""Ask a model: requests in chunks that are always cut alike, dealt over processes, kept at once."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from controlllm.common.distributed import ALONE, Ranks
from controlllm.common.errors import LostRankError
from controlllm.common.text.progress import progress
from controlllm.evaluate.items.store import Answer, AnswerStore, Request

__all__ = ["AnswerBook", "Answering"]

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
            raise LostRankError(f"an answer of {self.label} is gone from its store.")
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


def _attempt(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return make(), None
    except Exception as error:
        return [], error
