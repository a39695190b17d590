"""Special tokens by name: a template's are tokens; those in rows and in users' words are text.

```
contents --hide--> placeholders --template--> rendered --reveal--> the contents' names as they are,
                                                                   the template's as secret names
```
A second tokenizer knows the special tokens by their secret names only, and is the same otherwise.
It is made when the first text names a special token; all others are tokenized as ever.

Special is what the tokenizer calls so: `<think>` or `<tool_call>`, where they are ordinary tokens,
stay what they are.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.data.examples.spans import Span

__all__ = ["SpecialNames"]

HIDDEN, SECRET = "\ue0f4", "\ue0f5"
"""Private-use characters: what placeholders and secret names begin with."""

_known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, "SpecialNames"]] = WeakKeyDictionary()


class SpecialNames:
    """The names of a tokenizer's special tokens, and how texts are kept from becoming them."""

    def __init__(self, backend: Any) -> None:
        added = backend.get_added_tokens_decoder()
        self.ids = {token.content: id for id, token in added.items() if token.special}
        # Nobody can guess it, so no text holds it. Digits: no filter of a template changes them.
        nonce = str(secrets.randbits(64))
        self._placeholder, self._secret = f"{HIDDEN}{nonce}:", f"{SECRET}{nonce}:"
        names = "|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))) or "(?!)"
        self.pattern = re.compile(names)
        self._marks = re.compile(f"{self._placeholder}(\\d+);|({names})")
        self._names = {id: name for name, id in self.ids.items()}
        self._original = backend

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialNames":
        """Those of a fast tokenizer; found anew where tokens were added since."""
        state = id(tokenizer.backend_tokenizer), len(tokenizer)
        known = _known.get(tokenizer)
        if known is None or known[0] != state:
            known = _known[tokenizer] = state, cls(tokenizer.backend_tokenizer)
        return known[1]

    def stand_in(self, value: Any) -> bool:
        """Whether any text inside a value (a text, or messages) names a special token."""
        if isinstance(value, str):
            return self.pattern.search(value) is not None
        inside = value.values() if isinstance(value, Mapping) else value
        return isinstance(value, Mapping | list | tuple) and any(map(self.stand_in, inside))

    def hide(self, value: Any) -> Any:
        """The same with placeholders for the names: a template writes them as it finds them."""
        if isinstance(value, str):
            return self.pattern.sub(lambda m: f"{self._placeholder}{self.ids[m[0]]};", value)
        if isinstance(value, Mapping):
            return {key: self.hide(part) for key, part in value.items()}
        return list(map(self.hide, value)) if isinstance(value, list | tuple) else value

    def reveal(self, text: str, spans: Sequence[Span] = ()) -> tuple[str, list[Span]]:
        """A rendered text, and its spans, as `backend` takes it.

        Raises:
            DataError: the template wrote a part of a placeholder.
        """
        parts, moved, last = [], [(0, 0)], 0
        for match in self._marks.finditer(text):
            name = match[2]
            new = self._names[int(match[1])] if name is None else self._secret_name(self.ids[name])
            parts += [text[last : match.start()], new]
            last = match.end()
            moved.append((last, moved[-1][1] + len(new) - len(match[0])))

        def place(old: int) -> int:
            return old + next(shift for end, shift in reversed(moved) if end <= old)

        whole = "".join([*parts, text[last:]])
        if HIDDEN in whole:
            raise DataError(
                "the chat template cuts a content that names a special token; set "
                "data.special_tokens_in_text=true, or use another template"
            )
        return whole, [(place(start), place(end)) for start, end in spans]

    @cached_property
    def backend(self) -> Any:
        """The tokenizer that knows special tokens by their secret names only; the same ids.

        Raises:
            DataError: it would have others.
        """
        parts = json.loads(self._original.to_str())
        parts["truncation"] = parts["padding"] = None
        for token in parts["added_tokens"]:
            if token["special"]:
                token |= {"content": self._secret_name(token["id"]), "normalized": False}
        _rename(parts["model"], {name: self._secret_name(id) for name, id in self.ids.items()})
        renamed = Tokenizer.from_str(json.dumps(parts))
        if any(renamed.token_to_id(self._secret_name(id)) != id for id in self._names):
            raise DataError(
                "a text names a special token, and this tokenizer cannot take it as text; set "
                "data.special_tokens_in_text=true to let it become the token"
            )
        return renamed

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The ids of a text whose names of special tokens are text, but for secret names.

        As a batch of one: `Tokenizer.encode` lets no other thread of Python run meanwhile.
        """
        ids: list[int] = self.backend.encode_batch([text], add_special_tokens=add_special_tokens)[
            0
        ].ids
        return ids

    def _secret_name(self, id: int) -> str:
        return f"{self._secret}{id};"


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename entries of a model's vocabulary: no text may reach them by merges or as a whole."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): id for token, id in vocabulary.items()}
    elif vocabulary is not None:  # Unigram: tokens with their scores.
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & names.keys()]
