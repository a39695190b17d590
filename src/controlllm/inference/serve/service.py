"""What all routes share: the engine, the table of names, prompts, limits, metrics."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request as HttpRequest
from pydantic import BaseModel, ValidationError

from controlllm.inference.engine import (
    ClosingError,
    Engine,
    ModelTable,
    Piece,
    Request,
)
from controlllm.inference.serve.errors import ApiError, error_of_fields
from controlllm.inference.serve.metrics import Metrics
from controlllm.inference.serve.prompts import Prompts
from controlllm.inference.serve.settings import ServeSettings

__all__ = ["ClientGone", "Service"]

T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)


class ClientGone(Exception):
    """The client has left; nobody is to be answered."""


@dataclass
class Service:
    """One server: what its routes work with.

    Attributes:
        engine: writes the texts.
        settings: how it listens, and its limits.
        table: the names that clients may use.
        prompts: from messages to tokens.
        metrics: counts.
        draining: whether it takes nothing more, because it is about to end.
        in_flight: requests that are being answered.
    """

    engine: Engine
    settings: ServeSettings
    table: ModelTable
    prompts: Prompts
    metrics: Metrics
    draining: bool = False
    in_flight: int = 0
    started: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, engine: Engine, settings: ServeSettings) -> "Service":
        """The service of an engine.

        Raises:
            ConfigError: names or alphas that cannot be.
        """
        return cls(
            engine,
            settings,
            ModelTable(engine.sidecars, settings.alphas, engine.has_dial),
            Prompts(engine.tokenizer, settings.limits, engine.context),
            Metrics(engine),
        )

    async def read(self, request: HttpRequest, body: type[B]) -> B:
        """The body of a request, checked before anything else is done.

        Raises:
            ApiError: it is not JSON, too large, too slow, or has a field that cannot be followed.
        """
        if self.draining:
            raise ClosingError("the server is about to end, and takes nothing more.")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "Send JSON, with the header Content-Type: application/json.")
        try:
            async with asyncio.timeout(self.settings.limits.client_seconds):
                raw = await self._bounded(request)
        except TimeoutError:
            raise ApiError(408, "The body did not come in time.") from None
        try:
            return body.model_validate_json(raw)
        except ValidationError as error:
            raise error_of_fields(error, [*body.model_fields]) from None

    async def _bounded(self, request: HttpRequest) -> bytes:
        most = self.settings.limits.body_bytes
        told = request.headers.get("content-length", "0")
        parts, size = [], int(told) if told.isdecimal() and len(told) < 20 else 0
        if size <= most:
            size = 0
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > most:
                    break
        if size > most:
            raise ApiError(
                413, f"The body is larger than {most} bytes.", headers={"Connection": "close"}
            )
        return b"".join(parts)

    async def written(
        self, model: str, requests: Sequence[Request]
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """The pieces of several texts as they come, each with the number of its request.

        Raises:
            ControlLLMError: as `Engine.generate`, of the first that goes wrong.
        """
        pieces: asyncio.Queue[tuple[int, Piece | BaseException]] = asyncio.Queue()
        begin = time.monotonic()

        async def read(number: int, request: Request) -> None:
            try:
                async with aclosing(self.engine.generate(request)) as text:
                    async for piece in text:
                        pieces.put_nowait((number, piece))
            except Exception as error:
                pieces.put_nowait((number, error))

        tasks = [asyncio.create_task(read(i, one)) for i, one in enumerate(requests)]
        left, is_first = len(tasks), True
        try:
            while left:
                number, piece = await pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                if is_first:
                    self.metrics.first(time.monotonic() - begin)
                    is_first = False
                if piece.usage is not None:
                    self.metrics.answered(model, piece.usage, time.monotonic() - begin)
                left -= piece.finish is not None
                yield number, piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def unless_gone(self, request: HttpRequest, work: Awaitable[T]) -> T:
        """The result of some work, which is cancelled when the client leaves.

        Raises:
            ClientGone: it has left.
        """
        doing = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                self.metrics.left.inc()
                raise ClientGone
            return await doing
        finally:
            for task in (doing, leaving):
                task.cancel()
            await asyncio.gather(doing, leaving, return_exceptions=True)


async def _left(request: HttpRequest) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
