"""From tokens to text as they come, and never a part of a stop."""

from collections.abc import Sequence
from typing import Any

from controlllm.inference.decoding import TextDecoder
from controlllm.inference.engine.protocol import Token

__all__ = ["TextWriter"]


class TextWriter:
    """Decodes one text's tokens, and finds its stops.

    Args:
        tokenizer: decodes; special tokens have no text.
        prompt_ids: what the text goes on from.
        stops: texts before which it ends.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int], stops: Sequence[str]) -> None:
        self.decoder = TextDecoder(tokenizer, prompt_ids)
        self.stops = [stop for stop in stops if stop]
        self.stopped = False
        self._text = ""  # Decoded, and not given yet.
        self._tokens: list[tuple[Token, int]] = []  # Not given yet, and where they begin in it.

    def add(self, token: Token) -> tuple[str, tuple[Token, ...]]:
        """Take a token; the text that is certain now, with its tokens. Sets `stopped`."""
        self._tokens.append((token, len(self._text)))
        self._text += self.decoder.add(token.id)
        return self._give(final=False)

    def end(self) -> tuple[str, tuple[Token, ...]]:
        """All that was held back."""
        self._text += self.decoder.end()
        return self._give(final=True)

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
