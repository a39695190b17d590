"""What examples depend on, as short hashes: two equal keys mean equal examples.

```
options_key   the tokenizer's content, the template, every option   resume: is it the same run?
model_key     the content of a model that a hook asks for           caches: all of them, together
code_key      the code of formats, filters and hooks               with the rows' identity, stamps
```
"""

import ast
import importlib.util
import inspect
import json
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from types import CodeType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from controlllm.data.config.hooks import POSTPROCESS
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import RowEncoder
from controlllm.data.examples.row_filters import FILTERS
from controlllm.data.formats import FORMATS
from controlllm.data.sources.files import digest
from controlllm.data.sources.registry import READERS, SOURCES

__all__ = ["code_key", "file_digest", "forget_file", "model_key", "options_key"]

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
    """A hash that changes when tokenizer, template or options would make other examples of rows."""
    source = {
        name: value for name, value in asdict(encoder.source).items() if name not in NOT_OF_ROWS
    }
    config = {name: getattr(encoder.config, name) for name in OF_ENCODING}
    renderer = encoder.renderer
    values = (source, config, renderer.every_token, renderer.chat_template)
    return digest(
        json.dumps(values, sort_keys=True, default=repr), _tokenizer_digest(renderer.tokenizer)
    )


def model_key(model: Any) -> str:
    """A hash that changes when a model's config or a weight does, wherever it was loaded from.

    Sums of bits are exact on every device, so the key does not depend on where the model lies.
    """
    config = getattr(model, "config", None)
    parts: list[Any] = [json.dumps(config.to_dict(), sort_keys=True, default=str) if config else ""]
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            parts += [name, str(tensor.dtype), tuple(tensor.shape), _content(tensor.detach())]
    return digest(*parts)


def _content(tensor: Tensor) -> Any:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if not tensor.numel() or tensor.element_size() not in kinds:  # complex128 and the like
        return tensor.tolist()
    bits = tensor.contiguous().view(kinds[tensor.element_size()]).flatten()
    return int(bits.sum(dtype=torch.int64)), bits[:: -(-len(bits) // SAMPLED)].tolist()


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the tokenizer's content, wherever it lay; computed anew where that changed."""
    backend = tokenizer.backend_tokenizer
    steps = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    state = digest(
        id(backend), len(tokenizer), special, *(step and step.__getstate__() for step in steps)
    )
    known = _digests.get(tokenizer)
    if known is None or known[0] != state:
        content = json.loads(backend.to_str())
        # What a call may switch on and off again is no content.
        content = {k: v for k, v in content.items() if k not in ("truncation", "padding")}
        known = state, digest(json.dumps(content), special)
        _digests[tokenizer] = known
    return known[1]


VERSION = 1
"""Raise it with every change of this library by which the same rows become other tokens: then no
cache of an earlier release is used."""

TOKENIZING = ("tokenizers", "transformers", "jinja2")
"""Packages whose release may change tokens."""

_seen: dict[str, str] = {}

_parsing = Lock()  # Python 3.11's parser counts its depth for all threads together.


def code_key(source: SourceConfig) -> str:
    """A hash that changes when the code that reads, renders or filters rows does, also a user's.

    Raises:
        ConfigError: a format, filter or hook that the source names is not known.
    """
    own = [part for function in _functions(source) for part in _parts(_plain(function))]
    return digest(VERSION, *map(version, TOKENIZING), *own)


def file_digest(path: str, content: bytes | None = None) -> str:
    """A hash of a file as this process first saw it, which is the code that it runs."""
    if path not in _seen:
        _seen[path] = digest(Path(path).read_bytes() if content is None else content)
    return _seen[path]


def forget_file(path: str) -> None:
    """Let a file that could not be loaded be looked at again."""
    _seen.pop(path, None)
    _import_names.cache_clear()


def _functions(source: SourceConfig) -> Iterator[Any]:
    """All that may have a say in what the rows become, in a fixed order."""
    for name in [source.format] if source.format else FORMATS.names():
        yield FORMATS.get(name).convert
    for name in [source.file_type] if source.file_type in READERS.names() else READERS.names():
        yield READERS.get(str(name))
    for name in [source.source_type] if source.source_type else SOURCES.names():
        yield SOURCES.get(name)
    if source.filter:
        yield FILTERS.get(source.filter)
    if source.postprocess:
        yield POSTPROCESS.get(source.postprocess).function


def _plain(thing: Any) -> Callable[..., Any]:
    """The function or class behind a wrapper or a callable object."""
    while isinstance(thing, partial):
        thing = thing.func
    plain = inspect.unwrap(thing)
    is_code = inspect.isroutine(plain) or inspect.isclass(plain)
    return plain if is_code else type(plain)


def _parts(function: Callable[..., Any]) -> Iterator[str]:
    """Hashes of the files that a function depends on; of its own code where it has no file."""
    module = sys.modules.get(function.__module__)
    if module is not None and (file := _file(module)):
        own_package = module.__name__.partition(".")[0]
        if own_package != __name__.partition(".")[0]:
            yield file_digest(file)
            yield from sorted(map(file_digest, _imported(module, own_package, {file})))
    elif isinstance(code := getattr(function, "__code__", None), CodeType):
        yield repr(_instructions(code))
    # Plain values that it was made with: `shorter_than(10)` is not `shorter_than(20)`.
    for cell in getattr(function, "__closure__", None) or ():
        if isinstance(cell.cell_contents, str | int | float | bool | tuple | frozenset):
            yield repr(cell.cell_contents)


def _imported(module: ModuleType, own_package: str, seen: set[str]) -> Iterator[str]:
    """The files of the user's own modules that a module imports, and those that these import."""
    for name in _import_names(str(module.__file__), module.__package__ or ""):
        other = sys.modules.get(name)
        file = _file(other) if other is not None else None
        if other is None or file is None or file in seen:
            continue
        top = name.partition(".")[0]
        if top == own_package or not (_is_installed(file) or top == __name__.partition(".")[0]):
            seen.add(file)
            yield file
            yield from _imported(other, own_package, seen)


@cache
def _import_names(file: str, package: str) -> tuple[str, ...]:
    """What a source file of a package says that it imports: modules, and names that may be some."""
    try:
        with _parsing:
            tree = ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError):  # Edited since; then its own hash tells.
        return ()
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                names += (".".join(parts[: n + 1]) for n in range(len(parts)))
        elif isinstance(node, ast.ImportFrom):
            start = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names += [start, *(f"{start}.{alias.name}" for alias in node.names)]
    return tuple(names)


def _file(module: ModuleType) -> str | None:
    file = getattr(module, "__file__", None)
    return file if file and file.endswith(".py") and Path(file).is_file() else None


@cache
def _is_installed(file: str) -> bool:
    places = map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
    return any(Path(file).resolve().is_relative_to(Path(place).resolve()) for place in places)


def _instructions(code: CodeType) -> tuple[Any, ...]:
    """What a function does, of one that was typed into a session or a notebook."""
    constants = [_instructions(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return code.co_code.hex(), code.co_names, constants
