"""The engine on this machine: one thread owns the model, all others hand it work."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import torch

from controlllm.common.context import context_of
from controlllm.common.errors import ControlLLMError, ModelError
from controlllm.inference.engine.caches import CacheStore
from controlllm.inference.engine.dials import Dials
from controlllm.inference.engine.protocol import (
    BusyError,
    ClosingError,
    Health,
    Held,
    Piece,
    Request,
)
from controlllm.inference.engine.settings import EngineSettings
from controlllm.inference.engine.work import Cancelled, Job, Work
from controlllm.inference.engine.writing import Desk, Writing

__all__ = ["LocalEngine"]

T = TypeVar("T")

_GRACE_SECONDS = 0.1
"""For the model's thread to tell by itself that the time is up."""
_log = logging.getLogger(__name__)


class LocalEngine:
    """An `Engine` over a model in this process.

    The running requests take turns: each step sets the dial, computes one token of one of them with
    its own KV cache, and draws from its own generator. So no request's numbers depend on another.

    Args:
        model: an expanded model, one with adapters, or a plain one; nothing else may touch it.
        tokenizer: its tokenizer.
        settings: how much it takes on.
        name: what an only sidecar is called.
        saved: the dial that each of several named sidecars was saved with.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: EngineSettings | None = None,
        name: str = "tuned",
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.tokenizer = tokenizer
        self.context = context_of(model)
        self._dials = Dials(model.eval(), name, saved)
        self._caches = CacheStore(int(self.settings.cache_mib * 2**20))
        self._desk = Desk(model, tokenizer, self._dials.speak_as, self._caches)
        self._waiting: deque[Work] = deque()
        self._running: list[Work] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def sidecars(self) -> tuple[str, ...]:
        """Names of what was trained on the base."""
        return self._dials.sidecars

    @property
    def has_dial(self) -> bool:
        """Whether alpha can be chosen."""
        return self._dials.is_expanded

    async def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Write a text; see `Engine.generate`."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
        seconds = request.seconds or self.settings.request_seconds
        work = Writing(request, self._desk, _threadsafe(loop, pieces.put_nowait), seconds)
        self._take(work)
        try:
            while True:
                piece = await _in_time(work, pieces.get())
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if piece.finish is not None:
                    return
        finally:
            self._cancel(work)

    async def run(self, job: Callable[[Held], T], seconds: float | None = None) -> T:
        """Run a job in the model's thread; see `Engine.run`."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def settle(value: tuple[Any, BaseException | None]) -> None:
            if not done.done():
                done.set_result(value)

        give = _threadsafe(loop, settle)
        work: Job[T] = Job(
            job, self._held, lambda *told: give(told), seconds or self.settings.request_seconds
        )
        self._take(work)
        try:
            value, error = await _in_time(work, done)
        finally:
            self._cancel(work)
        if error is not None:
            raise error
        return value

    def health(self) -> Health:
        """How it is, at once."""
        with self._changed:
            works = self._thread.is_alive() and not self._closing
            return Health(works, len(self._running), len(self._waiting), self._caches.bytes)

    async def close(self, seconds: float = 0.0) -> None:
        """Take nothing more, let what runs end within so many seconds, then end the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        end = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < end:
            await asyncio.sleep(0.02)
        with self._changed:
            for work in [*self._waiting, *self._running]:
                work.ended = ClosingError("the server has ended, and this with it.")
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _held(self, check: Callable[[], None]) -> Held:
        return Held(self._desk.model, self.tokenizer, self._dials.speak_as, check)

    def _take(self, work: Work) -> None:
        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise ClosingError("the server is about to end, and takes nothing more.")
            if len(self._waiting) >= self.settings.max_waiting:
                raise BusyError(f"{len(self._waiting)} requests are waiting; try again later.")
            self._waiting.append(work)
            self._changed.notify()

    def _cancel(self, work: Work) -> None:
        with self._changed:
            work.cancelled = True
            if work in self._waiting:
                self._waiting.remove(work)

    # ------------------------------------------------------------------------------------------
    # what only the model's thread does

    @torch.inference_mode()
    def _work(self) -> None:
        while self._admit():
            self._running = [work for work in self._running if self._advanced(work)]

    def _admit(self) -> bool:
        """Wait for work and let it begin; False at the end."""
        with self._changed:
            while not (self._waiting or self._running or self._closing):
                self._changed.wait()
            while self._waiting and len(self._running) < self.settings.max_running:
                self._running.append(self._waiting.popleft())
            return bool(self._running)

    def _advanced(self, work: Work) -> bool:
        """Do a little of one work, and tell what went wrong; whether there is more to do."""
        try:
            work.check()
            return work.advance()
        except Cancelled:
            return False
        except Exception as error:
            if not isinstance(error, ControlLLMError) and not isinstance(work, Job):
                _log.error("the model failed", exc_info=error)
                error = ModelError(f"the model failed ({type(error).__name__}).")
            work.fail(error)
            return False
        finally:
            if isinstance(work, Job):
                self._dials.forget()


async def _in_time(work: Work, awaited: Awaitable[T]) -> T:
    """What is awaited, though the model's thread may be busy with others until the time is up.

    Raises:
        TimeUpError: the time is up.
    """
    try:
        async with asyncio.timeout(max(work.deadline - time.monotonic(), 0) + _GRACE_SECONDS):
            return await awaited
    except TimeoutError:
        work.check()
        raise


def _threadsafe(loop: Any, call: Callable[[Any], None]) -> Callable[[Any], None]:
    """The same call from another thread; nothing where the loop has ended."""

    def give(value: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(call, value)

    return give
