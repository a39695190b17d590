"""Answers in OpenAI's form: whole, or as the chunks of a stream."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controlllm.inference.engine import Choice, Piece, Token, Usage

__all__ = ["ChatReply", "CompletionReply", "Reply"]


@dataclass
class Reply(ABC):
    """One answer on its way.

    Attributes:
        choice: whom the client asked for; told back.
        tokenizer: names tokens.
        top: how many likeliest tokens are told; None = no log probabilities.
        n: so many answers to each prompt, which counts once.
    """

    choice: Choice
    tokenizer: Any
    top: int | None
    n: int = 1
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    prefix = ""
    kind = ""
    chunk_kind = ""

    def __post_init__(self) -> None:
        """Give it a name."""
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._anchor = self.tokenizer("a", add_special_tokens=False).input_ids

    def whole(self, texts: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """The answer in one: for each choice all its pieces."""
        choices = [self._choice(index, pieces) for index, pieces in enumerate(texts)]
        usages = [pieces[-1].usage for pieces in texts]
        return self._head(self.kind) | {"choices": choices, "usage": self._usage(usages)}

    def chunk(self, index: int, piece: Piece, is_first: bool) -> dict[str, Any]:
        """One piece as a chunk of a stream."""
        return self._head(self.chunk_kind) | {"choices": [self._part(index, piece, is_first)]}

    def usage_chunk(self, usages: Sequence[Usage | None]) -> dict[str, Any]:
        """The last chunk, for clients that asked for it."""
        return self._head(self.chunk_kind) | {"choices": [], "usage": self._usage(usages)}

    def _usage(self, usages: Sequence[Usage | None]) -> dict[str, Any]:
        known = [Usage(0) if usage is None else usage for usage in usages]
        prompt = sum(usage.prompt_tokens for usage in known[:: self.n])
        cached = sum(usage.cached_tokens for usage in known[:: self.n])
        written = sum(usage.completion_tokens for usage in known)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.choice.model,
            "alpha": self.choice.alpha,
            "sidecar": self.choice.sidecar,
        }

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        tokens = [token for piece in pieces for token in piece.tokens]
        return {
            "index": index,
            **self._content(text),
            "logprobs": None if self.top is None else self._logprobs(tokens),
            "finish_reason": pieces[-1].finish,
        }

    def _part(self, index: int, piece: Piece, is_first: bool) -> dict[str, Any]:
        return {
            "index": index,
            **self._new_content(piece.text, is_first),
            "logprobs": None if self.top is None else self._logprobs(piece.tokens),
            "finish_reason": piece.finish,
        }

    @abstractmethod
    def _content(self, text: str) -> Mapping[str, Any]:
        """What a whole choice says."""

    @abstractmethod
    def _new_content(self, text: str, is_first: bool) -> Mapping[str, Any]:
        """What a chunk of a choice says."""

    @abstractmethod
    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """The log probabilities of tokens."""

    def _name(self, token: int) -> str:
        """The text of a token behind another one: alone, many lose the space before them."""
        before = self.tokenizer.decode(self._anchor)
        return str(self.tokenizer.decode([*self._anchor, token])[len(before) :])


class ChatReply(Reply):
    """The next turn of a conversation."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _content(self, text: str) -> Mapping[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _new_content(self, text: str, is_first: bool) -> Mapping[str, Any]:
        delta = {"role": "assistant"} if is_first else {}
        return {"delta": delta | {"content": text}}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        content = [
            self._token(token.id, token.logprob)
            | {"top_logprobs": [self._token(*pair) for pair in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        name = self._name(token)
        # A part of a character has no text of its own.
        raw = None if "\ufffd" in name else list(name.encode())
        return {"token": name, "logprob": logprob, "bytes": raw}


class CompletionReply(Reply):
    """The text that follows a prompt."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def _content(self, text: str) -> Mapping[str, Any]:
        return {"text": text}

    def _new_content(self, text: str, is_first: bool) -> Mapping[str, Any]:
        return {"text": text}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        names = [self._name(token.id) for token in tokens]
        return {
            "tokens": names,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._name(i): p for i, p in token.top} for token in tokens],
        }
