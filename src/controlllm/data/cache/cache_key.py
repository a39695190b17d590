"""What examples depend on, as short hashes: two equal keys mean equal examples.

```
options_key   the tokenizer's content, the template, every option   resume: is it the same run?
model_key     the content of a model that a hook asks for           caches: all of them, together
code_key      the code of formats, filters and hooks (`codekey`)    with the rows' identity, stamps
```
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from controlllm.data.examples.encode import RowEncoder

__all__ = ["NOT_OF_ROWS", "OF_ENCODING", "model_key", "options_key"]

NOT_OF_ROWS = {"path", "name", "weight", "streaming", "epochs", "split", "subset", "revision"}
"""Fields of a source that change no row, or that the identity of its rows tells already."""

OF_ENCODING = (
    "max_length",
    "train_on",
    "long_text",
    "long_chat",
    "piece_bos",
    "special_tokens_in_text",
)
"""Fields of the data config that decide what becomes of a row."""

SAMPLED = 1024
"""Numbers of a weight whose places count, beside the sum of all of them."""

_digests: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, str]] = WeakKeyDictionary()


def options_key(encoder: RowEncoder) -> str:
    """Changes when a tokenizer, template or option would make other examples of the same rows."""
    source = {
        name: value for name, value in asdict(encoder.source).items() if name not in NOT_OF_ROWS
    }
    config = {name: getattr(encoder.config, name) for name in OF_ENCODING}
    renderer = encoder.renderer
    values = (source, config, renderer.every_token, renderer.chat_template)
    text = json.dumps(values, sort_keys=True, default=repr)
    return _hash(text, _tokenizer_digest(renderer.tokenizer))


def model_key(model: Any) -> str:
    """Changes when a model's config or any of its weights does, wherever it was loaded from.

    Sums of bits are exact on every device, so the key does not depend on where the model lies.

    Args:
        model: a `torch.nn.Module`.
    """
    config = getattr(model, "config", None)
    parts = [json.dumps(config.to_dict(), sort_keys=True, default=str)] if config else []
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            parts += [name, *_tensor_parts(tensor.detach())]
    return _hash(*parts)


def _tensor_parts(tensor: Tensor) -> Iterator[str]:
    yield f"{tensor.dtype}{tuple(tensor.shape)}"
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if tensor.numel() and tensor.element_size() in kinds:
        bits = tensor.contiguous().view(kinds[tensor.element_size()]).flatten()
        yield str(int(bits.sum(dtype=torch.int64)))
        yield str(bits[:: -(-len(bits) // SAMPLED)].tolist())
    elif tensor.numel():  # complex128 and the like
        yield str(tensor.tolist())


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of the tokenizer's content, wherever it was loaded from; computed anew where it changed."""
    backend = tokenizer.backend_tokenizer
    steps = [
        str(step and step.__getstate__())
        for step in (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    ]
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    state = _hash(str(id(backend)), str(len(tokenizer)), special, *steps)
    known = _digests.get(tokenizer)
    if known is None or known[0] != state:
        content = json.loads(backend.to_str())
        # What a call may switch on and off again is no content.
        content = {k: v for k, v in content.items() if k not in ("truncation", "padding")}
        known = state, _hash(json.dumps(content), special)
        _digests[tokenizer] = known
    return known[1]


def _hash(*parts: str) -> str:
    hasher = blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "big") + data)
    return hasher.hexdigest()
