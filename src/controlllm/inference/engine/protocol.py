"""What the server knows of an engine: requests in, pieces of text out, whoever computes them.

| class | what it says |
|---|---|
| `Voice` | who speaks: which sidecars, at which alpha |
| `Sampling` | how tokens are chosen, and when to stop |
| `Request` | a prompt, a voice, a sampling |
| `Piece` | some new text, its tokens, and in the last one why it ended |
"""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from controlllm.common.errors import ControlLLMError

__all__ = [
    "BusyError",
    "ClosingError",
    "Engine",
    "Health",
    "Held",
    "Piece",
    "Request",
    "Sampling",
    "TimeUpError",
    "Token",
    "Usage",
    "Voice",
]

T = TypeVar("T")


class BusyError(ControlLLMError):
    """As many requests wait as may wait; the same one may go well later."""


class ClosingError(ControlLLMError):
    """The engine takes nothing more: it is about to end."""


class TimeUpError(ControlLLMError):
    """A request has taken as long as one may take."""


@dataclass(frozen=True)
class Voice:
    """Who speaks: sidecars by name, each at its alpha; none = the base.

    Attributes:
        alphas: name and alpha of each sidecar that takes part; None = as it was saved.
    """

    alphas: tuple[tuple[str, float | None], ...] = ()

    @property
    def is_base(self) -> bool:
        """Whether no sidecar takes part: at alpha 0 a sidecar is the base, bit for bit."""
        return all(alpha == 0 for _, alpha in self.alphas)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and when to stop.

    Attributes:
        max_tokens: most tokens written.
        temperature: 0 always takes the likeliest token.
        top_p: sample from the likeliest tokens that together have this probability.
        seed: None = another text each time. With one, nothing that others do changes the text.
        stop: texts before which the answer ends.
        top_logprobs: so many likeliest tokens are told for each place; None = no log
            probabilities at all.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Request:
    """One text to write.

    Attributes:
        ids: the prompt's tokens.
        voice: who writes.
        sampling: how.
        seconds: the longest it may take, waiting included; None = the engine's own limit.
    """

    ids: tuple[int, ...]
    voice: Voice = Voice()
    sampling: Sampling = Sampling()
    seconds: float | None = None


@dataclass(frozen=True)
class Token:
    """A written token.

    Attributes:
        id: its id.
        logprob: its log probability in the model's own distribution (temperature 1, all tokens).
        top: ids and log probabilities of the likeliest tokens there, the likeliest first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """What a request took: tokens read, of these found in a cache, and tokens written."""

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Piece:
    """Some new text.

    Attributes:
        text: the text; whole characters only, and nothing that may be the beginning of a stop.
        tokens: the tokens that it came from.
        finish: in the last piece "stop" (the model or a stop ended it) or "length"; else None.
        usage: in the last piece, what the request took.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    finish: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Health:
    """How an engine is: whether it works, what runs and waits, and what its caches hold."""

    works: bool
    running: int = 0
    waiting: int = 0
    cache_bytes: int = 0


@dataclass(frozen=True)
class Held:
    """The model in the hands of the one thread that may touch it, for the time of one job.

    Attributes:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        speak_as: lets the model be a voice, until the next call.
        check: to be called now and then by long jobs: raises where nobody waits any more, or the
            time is up.
    """

    model: Any
    tokenizer: Any
    speak_as: Callable[[Voice], None]
    check: Callable[[], None] = field(default=lambda: None)


class Engine(Protocol):
    """Writes texts, many at a time; every method may be called from an event loop."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, for reading only."""

    @property
    def sidecars(self) -> tuple[str, ...]:
        """Names of what was trained on the base; () for a plain model."""

    @property
    def has_dial(self) -> bool:
        """Whether alpha can be chosen."""

    @property
    def context(self) -> int | None:
        """The positions that the model knows; None where it does not say."""

    def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Write a text; whoever stops iterating (`aclose`) ends it within a token or two.

        Raises:
            BusyError: the queue is full.
            ClosingError: the engine is about to end.
            TimeUpError: it took too long.
            ModelError: the model failed.
        """

    async def run(self, job: Callable[[Held], T], seconds: float | None = None) -> T:
        """Run a job that needs the model itself, alone, between two tokens of the others.

        Args:
            job: is called in the thread that owns the model, without gradients.
            seconds: the longest it may take, waiting included.

        Raises:
            BusyError, ClosingError, TimeUpError: as for `generate`.
            Exception: what the job raises.
        """

    def health(self) -> Health:
        """How it is, at once."""

    async def close(self, seconds: float = 0.0) -> None:
        """Take nothing more, let what runs end within so many seconds, then end the rest."""
