"""Rendered texts -> token ids, and which of them are targets; many texts at once.

`tokenizers` can note the characters of every token, which costs it up to half its speed. Two common
families need no note: every token has a fixed number of bytes, and those of a text add up to it.

```
byte-level BPE     GPT-2, Llama 3, Qwen, ...    a character of the vocabulary is a byte
sentencepiece BPE  Llama 2, Mistral, Gemma, ... as written, with a mark in place of each space
```
Where the sum is not the text's length (it was normalised, say), the text is left to the slow way.
"""

import json
import unicodedata
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, chain, compress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from controlllm.common.losses import IGNORE_INDEX
from controlllm.common.text.progress import stage
from controlllm.data.examples.spans import Span, token_range
from controlllm.data.examples.special import SpecialNames

__all__ = ["Prepared", "TextTokenizer", "TokenWidths", "Tokenized", "token_widths"]

IGNORED = np.int32(IGNORE_INDEX)

_LONG = 2**18
"""Characters that take seconds or more, with tokenizers that look at a text as a whole."""


SPACE = "\u2581"
"""What sentencepiece writes for a space."""


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


@dataclass(frozen=True)
class TokenWidths:
    """Bytes of every token of a vocabulary."""

    widths: NDArray[np.int64]
    """Bytes of each id (V)."""
    added: NDArray[np.bool_] | None
    """Which ids are added tokens (V), where the normalizer puts a space before whatever follows
    one (or begins the text); None where it does not."""
    nfc: bool
    """Whether texts are brought to the form NFC before."""

    def places(
        self, ids: NDArray[np.int32], bounds: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each token begins and ends, in the bytes of all texts one after the other (T).

        Args:
            ids: token ids of several texts (T).
            bounds: the place in `ids` at which each text begins, then the end (texts + 1).
        """
        widths = self.widths[ids]
        if self.added is not None:
            is_added = self.added[ids]
            opens = np.concatenate(([True], is_added[:-1]))[: len(ids)]
            opens[bounds[bounds < len(ids)]] = True
            widths = widths - (opens & ~is_added)
        ends = widths.cumsum()
        return ends - widths, ends

    def adds_up(self, text: str, size: int) -> bool:
        """Whether tokens of so many bytes together are known to stand for a text, as it is."""
        if size != _byte_length(text, len(text)):
            return False
        return not self.nfc or unicodedata.is_normalized("NFC", text)


def _byte_length(text: str, characters: int) -> int:
    """Bytes of a text's first characters in UTF-8."""
    if text.isascii():
        return characters
    return len(text[:characters].encode("utf-8", "surrogatepass"))


def token_widths(backend: Any) -> TokenWidths | None:
    """The widths of a tokenizer's tokens; None where its kind is not one of the two."""
    parts = json.loads(backend.to_str())
    model, normalizer = parts["model"], _steps(parts["normalizer"], "normalizers")
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] != "BPE" or any(model.get(affix) for affix in affixes):
        return None
    splits = _steps(parts["pre_tokenizer"], "pretokenizers")
    if _is_byte_level(splits) and _kinds(normalizer) in ([], ["NFC"]):
        vocabulary = {id: len(token) for token, id in model["vocab"].items()}
        prepends = False
    elif _is_sentencepiece(model, normalizer, splits):
        vocabulary = {id: _marked_width(token) for token, id in model["vocab"].items()}
        prepends = _kinds(normalizer)[0] == "Prepend"
    else:
        return None
    added = {token["id"]: len(token["content"].encode()) for token in parts["added_tokens"]}
    widths = np.zeros(max([*vocabulary, *added]) + 1, dtype=np.int64)
    for id, width in (vocabulary | added).items():
        widths[id] = width
    is_added = np.zeros(len(widths), dtype=bool)
    is_added[list(added)] = True
    return TokenWidths(widths, is_added if prepends else None, _kinds(normalizer) == ["NFC"])


def _steps(step: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, a sequence or not."""
    if step is None:
        return []
    return list(step[name]) if step["type"] == "Sequence" else [step]


def _kinds(steps: Sequence[dict[str, Any]]) -> list[str]:
    return [step["type"] for step in steps]


def _is_byte_level(splits: Sequence[dict[str, Any]]) -> bool:
    """Whether texts are cut, and then written in the alphabet of bytes."""
    if _kinds(splits)[-1:] != ["ByteLevel"] or splits[-1]["add_prefix_space"]:
        return False
    return all(kind in ("Split", "Digits") for kind in _kinds(splits)[:-1])


def _is_sentencepiece(
    model: dict[str, Any], normalizer: Sequence[dict[str, Any]], splits: Sequence[dict[str, Any]]
) -> bool:
    """Whether spaces become marks, unknown characters become bytes, and nothing else happens."""
    kinds = _kinds(normalizer)
    if not model.get("byte_fallback") or kinds not in (["Prepend", "Replace"], ["Replace"]):
        return False
    replace = normalizer[-1]
    if replace["pattern"] != {"String": " "} or replace["content"] != SPACE:
        return False
    if normalizer[0] is not replace and normalizer[0]["prepend"] != SPACE:
        return False
    return all(kind == "Split" for kind in _kinds(splits)) and all(
        f"<0x{byte:02X}>" in model["vocab"] for byte in range(256)
    )


def _marked_width(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace(SPACE, " ").encode())


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
                is_text, named = kind
                make = self._texts if is_text else self._by_offsets if named else self._chats
                done[kind] = iter(make(items, named))
        return [next(done[kind]) for kind in kinds]

    def _backend(self, named: bool = False) -> Any:
        if named:
            return self.names.backend
        backend = self.tokenizer.backend_tokenizer
        # What an earlier call of the tokenizer, somebody else's, may have left switched on.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        return backend

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

    def _chats(self, items: Sequence[Prepared], _: bool) -> list[Tokenized]:
        size = len(self.tokenizer)
        if self._widths is None or self._widths[0] != size:  # Tokens may be added later.
            self._widths = size, token_widths(self.tokenizer.backend_tokenizer)
        widths = self._widths[1]
        if widths is None:
            return self._by_offsets(items)
        texts = [item.text for item in items]
        encodings = self._backend().encode_batch_fast(texts, add_special_tokens=False)
        done = _by_widths(items, [encoding.ids for encoding in encodings], widths)
        left = [item for item, found in zip(items, done, strict=True) if not found]
        others = iter(self._by_offsets(left))
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
    spans = [
        (base + _byte_length(item.text, start), base + _byte_length(item.text, end))
        for item, base in compress(zip(items, bases, strict=False), known)
        for start, end in item.spans or ()
    ]
    places = np.array(spans, dtype=np.int64).reshape(-1, 2)
    # A token without bytes is the space that a normalizer put before the next one: with that one
    # it has to be predicted.
    first = np.maximum(ends, begins + 1).searchsorted(places[:, 0], side="right").tolist()
    last = begins.searchsorted(places[:, 1], side="left").tolist()
    is_target = np.zeros(len(flat), dtype=bool)
    for start, stop in zip(first, last, strict=True):
        is_target[start:stop] = True
    is_target[bounds[:-1][np.diff(bounds) > 0]] = False
    labels = np.where(is_target, flat, IGNORED)
    targets = np.concatenate(([0], is_target.cumsum()))[bounds].tolist()
    done: list[Tokenized | None] = [None] * len(items)
    for number in np.flatnonzero(known).tolist():
        own = slice(bounds[number], bounds[number + 1])
        count = targets[number + 1] - targets[number]
        # Copies: a row that waits long must not keep all others in memory.
        done[number] = Tokenized(flat[own].copy(), labels[own].copy(), count, is_text=False)
    return done
