"""What clients may send: OpenAI's fields as far as they are followed, and `alpha` and `sidecar`.

A field that is not here is refused. Fields that this server does not follow are here only with the
value that asks for nothing (`n` answers of one kind, no penalties), because clients send them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["NOT_FOLLOWED", "Body", "ChatBody", "CompletionBody", "Listed", "Message"]

T = TypeVar("T")

Alpha = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Listed = Annotated[list[T], Field(fail_fast=True)]
"""A list that is refused at its first wrong item: half a million of them would take seconds."""

NOT_FOLLOWED = {
    **dict.fromkeys(("user", "safety_identifier"), "this server keeps no account of who asks"),
    **dict.fromkeys(("metadata", "store"), "this server stores no requests"),
}
"""Fields of OpenAI's that say nothing of the answer, and why they are refused all the same."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class TextPart(_Strict):
    """A part of a content; only text is taken."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """A turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | Listed[TextPart]

    def plain(self) -> dict[str, str]:
        """Role and content as templates take them."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": self.role, "content": content}


class StreamOptions(_Strict):
    """What a stream tells beside the text."""

    include_usage: bool = False


class Body(_Strict, ABC):
    """What both kinds of requests have."""

    model: str
    alpha: Alpha | dict[str, Alpha] | None = None
    sidecar: str | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Seed | None = None
    stop: str | Listed[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    @property
    def stops(self) -> Sequence[str]:
        """The stop texts."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer, where the client says it."""
        return self.max_tokens

    @property
    @abstractmethod
    def top(self) -> int | None:
        """So many likeliest tokens are told; None = no log probabilities."""


class ChatBody(Body):
    """A request for the next turn of a conversation."""

    messages: Annotated[Listed[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer, by its new name or its old one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int | None:
        """So many likeliest tokens are told."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(Body):
    """A request for the text that follows a prompt."""

    prompt: str | Listed[str] | Listed[int] | Listed[Listed[int]]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer; 16 where nothing is said, as OpenAI has it."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def top(self) -> int | None:
        """So many likeliest tokens are told."""
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """All prompts, each a text or its token ids."""
        prompt: Any = self.prompt
        is_one = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], int))
        prompts: list[str] | list[list[int]] = [prompt] if is_one else prompt
        return prompts
