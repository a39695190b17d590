"""Reading, formats and tokens put together: a source config -> the feed that streams draw from.

```
prepared tokens, if there are any ------------------.
whole-source passes (deduplicate, difficulty, ...) --+--> TokenStore --.
rows as they lie ------------------------------------> Chunks + RowEncoder --> Feed
```
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from controlllm.common.distributed import Ranks
from controlllm.common.errors import ConfigError, DataError
from controlllm.common.storage.remote import is_remote
from controlllm.data.cache.cache_key import options_key
from controlllm.data.cache.prepare import needs_pass, prepare_source, prepared_store
from controlllm.data.cache.store import TokenStore
from controlllm.data.config.columns import MissingColumnError
from controlllm.data.config.data_config import DataConfig
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import RowEncoder
from controlllm.data.examples.row_filters import keeps_row
from controlllm.data.formats import check_columns, to_document
from controlllm.data.loader.packing import slot_store
from controlllm.data.loader.plugins import load_plugins
from controlllm.data.loader.shuffle import order_of
from controlllm.data.loader.stream import Feed
from controlllm.data.sources import Chunks, Located, open_chunks
from controlllm.data.sources.opening import kind_of_source

__all__ = [
    "Size",
    "check_first_rows",
    "check_source",
    "estimate_size",
    "make_feed",
    "open_source",
    "store_feed",
    "sum_sizes",
]

SAMPLED_ROWS = 1024
"""Rows that are tokenized to estimate the size of a source."""


def make_feed(
    source: SourceConfig,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    seed: Sequence[int],
    model: Any = None,
    ranks: Ranks | None = None,
) -> Feed:
    """Open a source for training.

    Raises:
        DataError: the source is missing, empty or unreadable.
    """
    chunks = open_source(source, config)
    encoder = RowEncoder(source, tokenizer, config, training=True)
    if needs_pass(source) or config.has_fixed_slots:
        store: TokenStore | None = prepare_source(encoder, chunks, model, ranks)
    else:
        store = prepared_store(encoder, chunks)
    if store is not None:
        return store_feed(str(source.name), store, config, seed, source.epochs)
    return Feed(
        name=str(source.name),
        chunks=chunks,
        order=order_of(len(chunks), config.shuffle, seed),
        encoder=encoder,
        numbers=_numbers(chunks, source.epochs),
        buffer=0 if chunks.by_row or not config.shuffle else config.shuffle_buffer,
        key=options_key(encoder),
    )


def check_source(source: SourceConfig) -> None:
    """Check what can be known before anything is opened; plugins must be loaded.

    Raises:
        ConfigError: its format, or a name in its `columns`, is not known.
    """
    try:
        check_columns(source.format, source.columns)
    except ConfigError as error:
        raise ConfigError(f"source {source.name!r}: {error}") from error


def check_first_rows(config: DataConfig) -> None:
    """Check that the first row of each source has the columns that the source names.

    It is quick, so that a misspelt name is told before a model is loaded. Only sources in files of
    this machine are opened, and bad rows of other kinds are told when it is their turn.

    Raises:
        ConfigError: see `check_source`; or a plugin cannot be loaded.
        DataError: a column is missing, or a source cannot be opened; with the source's name.
    """
    load_plugins(config)
    for source in (*config.train, *config.replay, *config.learn, *config.retain):
        check_source(source)
        is_here = kind_of_source(source) == "files" and not is_remote(source.path)
        by_column = source.difficulty not in (None, "length")
        names = source.where or source.group_by or source.columns or by_column
        if not (is_here and source.on_bad_row == "error" and names):
            continue
        for place, row in open_source(replace(source, max_rows=1), config).rows():
            try:
                if isinstance(row, dict) and keeps_row(row, source) and not source.postprocess:
                    to_document(row, source.format, source.columns, source.numbers_as_text)
            except MissingColumnError as error:
                raise DataError(f"source {source.name!r}: {place}: {error}.") from error
            except DataError:
                continue


def open_source(source: SourceConfig, config: DataConfig) -> Chunks:
    """The chunks of a source.

    Raises:
        ConfigError: see `check_source`.
        DataError: it is missing, empty or unreadable; with its name.
    """
    check_source(source)
    try:
        return open_chunks(source, config.timeout)
    except DataError as error:
        raise DataError(f"source {source.name!r}: {error}") from error


def store_feed(
    name: str,
    store: TokenStore,
    config: DataConfig,
    seed: Sequence[int],
    epochs: float | None = None,
) -> Feed:
    """A feed of examples that are tokens already; of slots of them, where a run reads slots."""
    if config.has_fixed_slots:
        store = slot_store(store, config)
    order = order_of(len(store), config.shuffle, seed, store.phases)
    return Feed(name, store, order, None, _numbers(store, epochs), key="tokens")


def _numbers(chunks: Chunks, epochs: float | None) -> int | None:
    return None if epochs is None else math.ceil(epochs * len(chunks))


@dataclass(frozen=True)
class Size:
    """How large a source is in one epoch."""

    examples: float
    tokens: float
    """Tokens of all examples."""
    exact: bool
    """Whether all of it was counted, or estimated from a sample."""


def sum_sizes(sizes: Iterable[Size], factors: Iterable[float]) -> Size:
    """All together, each times its factor."""
    parts = list(zip(sizes, factors, strict=False))
    examples = sum(size.examples * factor for size, factor in parts)
    tokens = sum(size.tokens * factor for size, factor in parts)
    return Size(examples, tokens, all(size.exact for size, _ in parts))


def estimate_size(feed: Feed) -> Size:
    """Examples and tokens of one epoch, from a sample where counting would take long.

    Raises:
        ConfigError: the size of a streamed source is not known.
        DataError: the sample cannot be read.
    """
    chunks = feed.chunks
    if isinstance(chunks, TokenStore):
        return Size(len(chunks), float(chunks.tokens), exact=True)
    if chunks.num_rows is None and chunks.num_bytes is None:
        raise ConfigError(
            f"source {feed.name!r} is a stream of unknown size; give `max_steps` and weights "
            "instead of `num_train_epochs` and `temperature`."
        )
    assert feed.encoder is not None
    encoder = feed.encoder.fresh()
    chosen = range(0, len(chunks), max(1, len(chunks) // (SAMPLED_ROWS if chunks.by_row else 8)))
    sampled: list[Located] = []
    rows_in_chosen = 0
    for chunk in chosen:
        sampled += islice(chunks.read(chunk), max(1, SAMPLED_ROWS // len(chosen)))
        rows_in_chosen += chunks.count(chunk) if chunks.num_rows is None else 0
    encoder.encode(sampled)
    rows = chunks.num_rows or round(rows_in_chosen * len(chunks) / len(chosen))
    factor = rows / max(len(sampled), 1)
    stats = encoder.stats
    return Size(stats.examples * factor, stats.tokens * factor, exact=len(sampled) == rows)
