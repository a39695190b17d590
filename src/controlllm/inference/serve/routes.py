"""The routes of OpenAI's protocol: models, chats, completions."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from controlllm.inference.engine import Piece, Request, Sampling, Usage
from controlllm.inference.serve.bodies import Body, ChatBody, CompletionBody
from controlllm.inference.serve.errors import ApiError, as_api_error
from controlllm.inference.serve.replies import ChatReply, CompletionReply, Reply
from controlllm.inference.serve.service import Service

__all__ = ["openai_router"]


def openai_router(service: Service) -> APIRouter:
    """The routes, over one service."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": list(map(_model, service.table.names))})

    @router.get("/models/{name}")
    async def model(name: str) -> JSONResponse:
        return JSONResponse(_model(service.table.choose(name).model))

    def _model(name: str) -> dict[str, Any]:
        told = {"id": name, "object": "model", "created": service.started, "owned_by": "controlllm"}
        choice = service.table.choose(name)
        return told | {"alpha": choice.alpha, "sidecar": choice.sidecar}

    @router.post("/chat/completions")
    async def chat(request: HttpRequest) -> Response:
        body = await service.read(request, ChatBody)
        choice = service.table.choose(body.model, body.sidecar, body.alpha)
        sampling, n = _sampling(service, body), body.n or 1
        most = service.settings.limits.messages
        if len(body.messages) > most:
            raise ApiError(400, f"messages: at most {most} are taken.", "messages")
        ids = await service.prompts.chat([message.plain() for message in body.messages])
        requests = _requests(service, body, [Request(ids, choice.voice, sampling)])
        reply = ChatReply(choice, service.engine.tokenizer, body.top, n)
        return await _answer(service, request, body, requests, reply)

    @router.post("/completions")
    async def completions(request: HttpRequest) -> Response:
        body = await service.read(request, CompletionBody)
        choice = service.table.choose(body.model, body.sidecar, body.alpha)
        sampling, n = _sampling(service, body), body.n or 1
        if not body.prompts or len(body.prompts) * n > service.settings.limits.choices:
            most = service.settings.limits.choices
            raise ApiError(400, f"prompt: from 1 to {most} texts (times n) are taken.", "prompt")
        prompts = [await service.prompts.text(prompt) for prompt in body.prompts]
        requests = [Request(ids, choice.voice, sampling) for ids in prompts]
        requests = _requests(service, body, requests)
        reply = CompletionReply(choice, service.engine.tokenizer, body.top, n)
        return await _answer(service, request, body, requests, reply)

    return router


def _sampling(service: Service, body: Body) -> Sampling:
    """How the client wants it written; checked before any work.

    Raises:
        ApiError: too many answers or stops, or fields that contradict one another.
    """
    limits = service.settings.limits
    if (body.n or 1) > limits.choices:
        raise ApiError(400, f"n: at most {limits.choices} answers are given.", "n")
    if len(body.stops) > limits.stops:
        raise ApiError(400, f"stop: at most {limits.stops} are taken.", "stop")
    if any(not 0 < len(stop) <= limits.stop_chars for stop in body.stops):
        raise ApiError(400, f"stop: each has from 1 to {limits.stop_chars} characters.", "stop")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options: only read with stream=true.", "stream_options")
    if isinstance(body, ChatBody):
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: only read with logprobs=true.", "top_logprobs")
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise ApiError(400, "max_tokens: the old name of max_completion_tokens.", "max_tokens")
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        stop=tuple(body.stops),
        top_logprobs=body.top,
    )


def _requests(service: Service, body: Body, prompts: Sequence[Request]) -> list[Request]:
    """One request per answer: n of each prompt, each with a seed of its own."""
    made = []
    for request in prompts:
        most = service.prompts.room(len(request.ids), body.most_tokens)
        for number in range(body.n or 1):
            seed = None if body.seed is None else (body.seed + number) % 2**63
            sampling = replace(request.sampling, max_tokens=most, seed=seed)
            made.append(replace(request, sampling=sampling))
    return made


async def _answer(
    service: Service,
    request: HttpRequest,
    body: Body,
    requests: list[Request],
    reply: Reply,
) -> Response:
    pieces = service.written(reply.choice.model, requests)
    if not body.stream:
        return await service.unless_gone(request, _whole(pieces, len(requests), reply))
    try:  # What goes wrong before the first piece is an error with a status of its own.
        first = await service.unless_gone(request, anext(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    usage = body.stream_options is not None and body.stream_options.include_usage
    return _Events(_events(first, pieces, len(requests), reply, usage))


async def _whole(
    pieces: AsyncGenerator[tuple[int, Piece], None], count: int, reply: Reply
) -> JSONResponse:
    texts: list[list[Piece]] = [[] for _ in range(count)]
    async with aclosing(pieces):
        async for number, piece in pieces:
            texts[number].append(piece)
    return JSONResponse(reply.whole(texts))


async def _events(
    first: tuple[int, Piece],
    pieces: AsyncGenerator[tuple[int, Piece], None],
    count: int,
    reply: Reply,
    tell_usage: bool,
) -> AsyncGenerator[str, None]:
    """The chunks of a stream; an error is the last of them, and there is no [DONE] after it."""
    usages: list[Usage | None] = [None] * count
    begun: set[int] = set()

    def event(number: int, piece: Piece) -> str:
        is_first = number not in begun
        begun.add(number)
        usages[number] = piece.usage
        return _event(reply.chunk(number, piece, is_first))

    async with aclosing(pieces):
        try:
            yield event(*first)
            async for number, piece in pieces:
                yield event(number, piece)
        except Exception as error:
            yield _event(as_api_error(error).body())
            return
    if tell_usage:
        yield _event(reply.usage_chunk(usages))
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


class _Events(StreamingResponse):
    """Server-sent events; when the client leaves, what writes them ends at once."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(events)
        self.events = events

    async def stream_response(self, send: Send) -> None:
        """Send them all."""
        async with aclosing(self.events):
            await super().stream_response(send)
