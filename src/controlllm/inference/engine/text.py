"""From tokens to text as they come: whole characters, and never a part of a stop."""

from collections.abc import Sequence
from typing import Any

from controlllm.inference.engine.protocol import Token

__all__ = ["TextWriter"]

_CONTEXT_TOKENS = 8
"""New tokens are decoded behind so many of the prompt: alone, many lose the space before them."""
_UNFINISHED = "\ufffd"
_LONGEST_CHARACTER = 8
"""Tokens after which bytes that are no character are given as they are."""


class TextWriter:
    """Decodes one text's tokens, and finds its stops.

    Args:
        tokenizer: decodes; special tokens have no text.
        prompt_ids: what the text goes on from.
        stops: texts before which it ends.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int], stops: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stops = [stop for stop in stops if stop]
        self.stopped = False
        self._ids = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._begin, self._read = 0, len(self._ids)
        self._text = ""  # Decoded, and not given yet.
        self._tokens: list[tuple[Token, int]] = []  # Not given yet, and where they begin in it.

    def add(self, token: Token) -> tuple[str, tuple[Token, ...]]:
        """Take a token; the text that is certain now, with its tokens. Sets `stopped`."""
        self._tokens.append((token, len(self._text)))
        self._ids.append(token.id)
        self._text += self._decode(final=False)
        return self._give(final=False)

    def end(self) -> tuple[str, tuple[Token, ...]]:
        """All that was held back."""
        self._text += self._decode(final=True)
        return self._give(final=True)

    def _decode(self, final: bool) -> str:
        """The text of the new tokens, once its last character is whole."""
        before = self._as_text(self._ids[self._begin : self._read])
        whole = self._as_text(self._ids[self._begin :])
        waits = whole.endswith(_UNFINISHED) and len(self._ids) - self._read < _LONGEST_CHARACTER
        if len(whole) <= len(before) or (waits and not final):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return whole[len(before) :]

    def _as_text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _give(self, final: bool) -> tuple[str, tuple[Token, ...]]:
        found = [place for stop in self.stops if (place := self._text.find(stop)) >= 0]
        if found:
            self.stopped = True
            text = self._text[: min(found)]
            tokens = tuple(token for token, place in self._tokens if place < len(text))
            self._text, self._tokens = "", []
            return text, tokens
        end = len(self._text) - (0 if final else self._held())
        text, self._text = self._text[:end], self._text[end:]
        # A token whose characters are not whole yet waits for them.
        given = [token for token, place in self._tokens if final or place < end]
        self._tokens = [(t, place - end) for t, place in self._tokens[len(given) :]]
        return text, tuple(given)

    def _held(self) -> int:
        """How many of the last characters may begin a stop."""
        longest = min(max(map(len, self.stops), default=0) - 1, len(self._text))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self.stops):
                return length
        return 0
