"""From tokens to text as they come, whole characters only."""

from collections.abc import Sequence
from typing import Any

__all__ = ["TextDecoder"]

_CONTEXT_TOKENS = 8
"""New tokens are decoded behind so many of the prompt: alone, many lose the space before them."""
_UNFINISHED = "\ufffd"
_LONGEST_CHARACTER = 8
"""Tokens after which bytes that are no character are given as they are."""


class TextDecoder:
    """Decodes the tokens of one text one by one: what it gives, joined, is the decoded whole.

    Special tokens have no text, and spaces stay where the tokens have them.

    Args:
        tokenizer: decodes.
        prompt_ids: what the text goes on from.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self._ids = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._begin, self._read = 0, len(self._ids)

    def add(self, token: int) -> str:
        """Take a token; what is certain now: a character whose bytes are not all there waits."""
        self._ids.append(token)
        return self._decode(final=False)

    def end(self) -> str:
        """All that waited."""
        return self._decode(final=True)

    def _decode(self, final: bool) -> str:
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
