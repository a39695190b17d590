"""How many bytes of its text each token stands for, told from the tokenizer alone.

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
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenWidths", "byte_length", "token_widths"]

SPACE = "\u2581"
"""What sentencepiece writes for a space."""


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
        if size != byte_length(text, len(text)):
            return False
        return not self.nfc or unicodedata.is_normalized("NFC", text)


def byte_length(text: str, characters: int) -> int:
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
