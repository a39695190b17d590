"""What examples depend on, as short hashes: two equal keys mean equal examples.

```
options_key   the tokenizer's content, the template, every option     resume: is it the same run?
code_key      the code of formats, rendering, filters and hooks       caches: together with the first,
                                                                      the rows' identity and time stamps
```
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from controlllm.data.choose import FILTERS
from controlllm.data.config import SourceConfig
from controlllm.data.encode import RowEncoder
from controlllm.data.formats import FORMATS
from controlllm.data.hooks import POSTPROCESS

__all__ = ["code_key", "options_key"]

NOT_OF_ROWS = {"path", "name", "weight", "streaming", "epochs", "split", "subset", "revision"}
"""Fields of a source that change no row, or that the identity of its rows tells already."""

OF_ENCODING = ("max_length", "train_on", "long_text", "long_chat")
"""Fields of the data config that decide what becomes of a row."""

_digests: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, str]] = WeakKeyDictionary()


def options_key(encoder: RowEncoder) -> str:
    """Changes when a tokenizer, template or option would make other examples of the same rows."""
    source = {
        name: value for name, value in asdict(encoder.source).items() if name not in NOT_OF_ROWS
    }
    config = {name: getattr(encoder.config, name) for name in OF_ENCODING}
    renderer = encoder.renderer
    values = (source, config, renderer.every_token, renderer.chat_template)
    return _hash(json.dumps(values, sort_keys=True, default=repr), _tokenizer_digest(encoder))


def code_key(source: SourceConfig) -> str:
    """Changes when the code that reads, renders or filters rows does, a user's own included."""
    names = [source.format] if source.format else FORMATS.names()
    functions: list[Callable[..., Any]] = [FORMATS.get(name).convert for name in names]
    if source.filter:
        functions.append(FILTERS.get(source.filter))
    if source.postprocess:
        functions.append(POSTPROCESS.get(source.postprocess).function)
    files = {inspect.getsourcefile(inspect.unwrap(function)) for function in functions}
    return _hash(_own_code(), *sorted(_file_digest(file) for file in files if file))


@cache
def _own_code() -> str:
    """Of this room: a new release never takes an older one's cache for its own."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return _hash(*(_file_digest(str(file)) for file in files))


def _file_digest(file: str) -> str:
    return blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()


def _tokenizer_digest(encoder: RowEncoder) -> str:
    """Of the tokenizer's content, wherever it was loaded from."""
    tokenizer = encoder.renderer.tokenizer
    known = _digests.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        # What a call may switch on and off again is no content.
        content = {k: v for k, v in content.items() if k not in ("truncation", "padding")}
        special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
        known = len(tokenizer), _hash(json.dumps(content), special)
        _digests[tokenizer] = known
    return known[1]


def _hash(*parts: str) -> str:
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
