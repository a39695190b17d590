"""Where base and tuned model part in an answer: the body, the job, and what is told."""

import math
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from controlllm.inference.compare import (
    Choice,
    TokenChange,
    answered_text,
    mean_kl,
    token_changes,
)
from controlllm.inference.engine import Held, Voice
from controlllm.inference.serve.bodies import Alpha, Listed, Message
from controlllm.inference.serve.errors import ApiError
from controlllm.inference.serve.service import Service

__all__ = ["CompareBody", "add_comparison"]


class CompareBody(BaseModel):
    """An answer, what it answers, and the voice to hold against the base."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    model: str
    alpha: Alpha | dict[str, Alpha] | None = None
    sidecar: str | None = None
    messages: Listed[Message] | None = Field(default=None, min_length=1)
    prompt: str | None = None
    answer: str

    @model_validator(mode="after")
    def _one_kind(self) -> "CompareBody":
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either messages or prompt")
        return self


def add_comparison(router: APIRouter, service: Service) -> None:
    """Add `POST /controlllm/compare`."""

    @router.post("/controlllm/compare")
    async def compare(request: HttpRequest) -> JSONResponse:
        body = await service.read(request, CompareBody)
        choice = service.table.choose(body.model, body.sidecar, body.alpha)
        if not service.engine.sidecars:
            raise ApiError(400, "This model has nothing beside its base to compare it with.")
        ids, start = await _tokens(service, body)
        changes = await service.unless_gone(
            request, service.engine.run(lambda held: _changes(held, choice.voice, ids, start))
        )
        told = {"model": choice.model, "alpha": choice.alpha, "sidecar": choice.sidecar}
        return JSONResponse(
            told | {"mean_kl": _finite(mean_kl(changes)), "tokens": [*map(_told, changes)]}
        )


async def _tokens(service: Service, body: CompareBody) -> tuple[list[int], int]:
    """The tokens of prompt and answer, and where the answer begins.

    Raises:
        ApiError: too many messages or tokens.
    """
    prompts, limits = service.prompts, service.settings.limits
    if body.messages is None:
        prompt = await prompts.text(body.prompt or "")
        whole = await prompts.text((body.prompt or "") + body.answer)
        ids, start = answered_text(prompt, whole)
    else:
        if len(body.messages) > limits.messages:
            raise ApiError(400, f"messages: at most {limits.messages} are taken.", "messages")
        prompt = await prompts.chat([message.plain() for message in body.messages])
        ids, start = await prompts.answered(prompt, body.answer)
    if len(ids) - start > limits.max_tokens:
        raise ApiError(400, f"answer: at most {limits.max_tokens} tokens are compared.", "answer")
    context = service.engine.context
    if context is not None and len(ids) > context:
        raise ApiError(
            400,
            f"The model's context holds {context} tokens; prompt and answer have {len(ids)}.",
            "answer",
            "context_length_exceeded",
        )
    return ids, start


def _changes(held: Held, voice: Voice, ids: list[int], start: int) -> list[TokenChange]:
    """The job: in the model's thread, at the dial of a voice."""
    held.speak_as(voice)
    return token_changes(held.model, held.tokenizer, ids, start, held.check)


def _told(change: TokenChange) -> dict[str, Any]:
    """A token as JSON; null where a probability is 0."""
    return {
        "text": change.text,
        "kl": _finite(change.kl),
        "base_logprob": _finite(change.base_logprob),
        "tuned_logprob": _finite(change.tuned_logprob),
        "change": _finite(change.change),
        "base_choice": _choice(change.base_choice),
        "tuned_choice": _choice(change.tuned_choice),
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {"text": choice.text, "probability": _finite(choice.probability)}


def _finite(number: float) -> float | None:
    """JSON has no infinity."""
    return round(number, 6) if math.isfinite(number) else None
