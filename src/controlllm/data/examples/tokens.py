"""Step 4b: rendered texts -> token ids, and which of them are targets; many texts at once."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, chain, compress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from controlllm.common.losses import IGNORE_INDEX
from controlllm.common.text.progress import stage
from controlllm.data.examples.offsets import TokenWidths, byte_length, token_widths
from controlllm.data.examples.spans import Span, token_range
from controlllm.data.examples.special import SpecialNames

__all__ = ["Prepared", "TextTokenizer", "Tokenized"]

IGNORED = np.int32(IGNORE_INDEX)

_LONG = 2**18
"""Characters that take seconds or more, with tokenizers that look at a text as a whole."""


@dataclass(frozen=True)
class Prepared:
    """A document as one text, ready to be tokenized."""

    text: str
    """The text; for a conversation as its template renders it."""
    spans: list[Span] | None
    """The characters that are targets; None for plain text, where all are."""
    named: bool = False
    """Whether it names special tokens as text (see `special`)."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A document as tokens, of any length."""

    input_ids: NDArray[np.int32]
    """Token ids (T)."""
    labels: NDArray[np.int32]
    """The ids where they are targets, -100 elsewhere and at the first token, which nothing
    predicts (T)."""
    targets: int
    """How many are targets."""
    is_text: bool
    """Plain text, which may be split."""


class TextTokenizer:
    """Tokenizes by the `tokenizers` library itself: quicker than `tokenizer(...)`, the same ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.names = SpecialNames.of(tokenizer)
        self._widths: tuple[int, TokenWidths | None] | None = None

    def tokenize(self, prepared: Sequence[Prepared]) -> list[Tokenized]:
        """Tokens of each, in order. Many at once are several times faster than one by one."""
        kinds = [(item.spans is None, item.named) for item in prepared]
        size = sum(len(item.text) for item in prepared)
        done = {}
        with stage(f"tokenizing {size:,} characters") if size > _LONG else nullcontext():
            for kind in set(kinds):
                items = [item for item, own in zip(prepared, kinds, strict=True) if own == kind]
                done[kind] = iter(self._of_kind(items, *kind))
        return [next(done[kind]) for kind in kinds]

    def _of_kind(self, items: Sequence[Prepared], is_text: bool, named: bool) -> list[Tokenized]:
        if is_text:
            return self._texts(items, named)
        return self._by_offsets(items, named) if named else self._chats(items)

    def _backend(self, named: bool = False) -> Any:
        if named:
            return self.names.backend
        backend = self.tokenizer.backend_tokenizer
        # What an earlier call of the tokenizer, somebody else's, may have left switched on.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        return backend

    def _known_widths(self) -> TokenWidths | None:
        """Found once; again where tokens were added since."""
        size = len(self.tokenizer)
        if self._widths is None or self._widths[0] != size:
            self._widths = size, token_widths(self.tokenizer.backend_tokenizer)
        return self._widths[1]

    def _texts(self, items: Sequence[Prepared], named: bool) -> list[Tokenized]:
        eos = self.tokenizer.eos_token_id
        done = []
        for encoding in self._backend(named).encode_batch_fast([i.text for i in items]):
            ids = encoding.ids
            tokens = np.array(ids if ids and ids[-1] == eos else [*ids, eos], dtype=np.int32)
            labels = tokens.copy()
            labels[0] = IGNORE_INDEX
            done.append(Tokenized(tokens, labels, len(tokens) - 1, is_text=True))
        return done

    def _chats(self, items: Sequence[Prepared]) -> list[Tokenized]:
        widths = self._known_widths()
        if widths is None:
            return self._by_offsets(items)
        texts = [item.text for item in items]
        encodings = self._backend().encode_batch_fast(texts, add_special_tokens=False)
        done = _by_widths(items, [encoding.ids for encoding in encodings], widths)
        others = iter(
            self._by_offsets([i for i, found in zip(items, done, strict=True) if not found])
        )
        return [found or next(others) for found in done]

    def _by_offsets(self, items: Sequence[Prepared], named: bool = False) -> list[Tokenized]:
        """The slow way: the library notes the characters of each token."""
        if not items:
            return []
        done = []
        texts = [item.text for item in items]
        encodings = self._backend(named).encode_batch(texts, add_special_tokens=False)
        for item, encoding in zip(items, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int32)
            is_target = np.zeros(len(ids), dtype=bool)
            for span in item.spans or []:
                is_target[token_range(encoding.token_to_chars, len(ids), span)] = True
            is_target[:1] = False
            labels = np.where(is_target, ids, IGNORED)
            done.append(Tokenized(ids, labels, int(is_target.sum()), is_text=False))
        return done


def _by_widths(
    items: Sequence[Prepared], ids: Sequence[list[int]], widths: TokenWidths
) -> list[Tokenized | None]:
    """The quick way, for all texts as one array; None for a text whose bytes do not add up."""
    flat = np.array(list(chain.from_iterable(ids)), dtype=np.int32)
    bounds = np.array([0, *accumulate(map(len, ids))])
    begins, ends = widths.places(flat, bounds)
    # Bytes before the first token of each text, and after all.
    bases = np.concatenate(([0], ends))[bounds].tolist()
    known = [
        widths.adds_up(item.text, end - start)
        for item, start, end in zip(items, bases, bases[1:], strict=False)
    ]
    is_target = np.zeros(len(flat), dtype=bool)
    for first, stop in zip(
        *_ranges(compress(zip(items, bases, strict=False), known), begins, ends), strict=True
    ):
        is_target[first:stop] = True
    is_target[bounds[:-1][np.diff(bounds) > 0]] = False
    labels = np.where(is_target, flat, IGNORED)
    targets = np.concatenate(([0], is_target.cumsum()))[bounds].tolist()
    done: list[Tokenized | None] = []
    places = bounds.tolist()
    for number, is_known in enumerate(known):
        if not is_known:
            done.append(None)
            continue
        own = slice(places[number], places[number + 1])
        count = targets[number + 1] - targets[number]
        # Copies: a row that waits long must not keep all others in memory.
        done.append(Tokenized(flat[own].copy(), labels[own].copy(), count, is_text=False))
    return done


def _ranges(
    texts: Iterable[tuple[Prepared, int]], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[list[int], list[int]]:
    """The first token of each span of some texts, and the one behind its last."""
    spans = [
        (base + byte_length(item.text, start), base + byte_length(item.text, end))
        for item, base in texts
        for start, end in item.spans or ()
    ]
    places = np.array(spans, dtype=np.int64).reshape(-1, 2)
    # A token without bytes is the space that a normalizer put before the next one: with that one
    # it has to be predicted.
    first = np.maximum(ends, begins + 1).searchsorted(places[:, 0], side="right")
    return first.tolist(), begins.searchsorted(places[:, 1], side="left").tolist()
