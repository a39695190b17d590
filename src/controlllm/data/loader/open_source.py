"""Steps 1 to 4 put together: a source config -> the feed that streams draw from.

```
prepared tokens, if there are any ------------------.
whole-source passes (deduplicate, difficulty, ...) --+--> TokenStore --.
rows as they lie ------------------------------------> Blocks + RowEncoder --> Feed
```
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from controlllm.common.distributed import Ranks
from controlllm.common.errors import ConfigError, DataError
from controlllm.data.cache.cache_key import options_key
from controlllm.data.cache.prepare import needs_pass, prepare_source, prepared_store
from controlllm.data.cache.store import TokenStore
from controlllm.data.config.data_config import DataConfig
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import RowEncoder
from controlllm.data.formats import check_columns
from controlllm.data.loader.packed_store import slot_store
from controlllm.data.loader.shuffle import order_of
from controlllm.data.loader.stream import Feed
from controlllm.data.sources import Blocks, Located, open_blocks

__all__ = ["Size", "check_source", "estimate_size", "make_feed", "open_source", "store_feed"]

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

    Args:
        source: where the rows lie.
        tokenizer: a fast tokenizer.
        config: how rows become examples.
        seed: of the order of its blocks.
        model: for `postprocess` hooks that ask for one.
        ranks: the processes that share the work of a whole-source pass.

    Raises:
        DataError: the source is missing, empty or unreadable.
    """
    blocks = open_source(source, config)
    encoder = RowEncoder(source, tokenizer, config, training=True)
    if needs_pass(source) or config.has_fixed_slots:
        store: TokenStore | None = prepare_source(encoder, blocks, model, ranks)
    else:
        store = prepared_store(encoder, blocks)
    if store is not None:
        return store_feed(str(source.name), store, config, seed, source.epochs)
    return Feed(
        name=str(source.name),
        blocks=blocks,
        order=order_of(len(blocks), config.shuffle, seed),
        encoder=encoder,
        numbers=_numbers(blocks, source.epochs),
        buffer=0 if blocks.by_row or not config.shuffle else config.shuffle_buffer,
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


def open_source(source: SourceConfig, config: DataConfig) -> Blocks:
    """The blocks of a source.

    Raises:
        ConfigError: see `check_source`.
        DataError: it is missing, empty or unreadable; with its name.
    """
    check_source(source)
    try:
        return open_blocks(source, config.timeout)
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


def _numbers(blocks: Blocks, epochs: float | None) -> int | None:
    return None if epochs is None else math.ceil(epochs * len(blocks))


@dataclass(frozen=True)
class Size:
    """How large a source is in one epoch."""

    examples: float
    """Examples."""

    tokens: float
    """Tokens of all examples."""

    exact: bool
    """Whether all of it was counted, or estimated from a sample."""


def estimate_size(feed: Feed) -> Size:
    """Examples and tokens of one epoch, from a sample where counting would take long.

    Raises:
        ConfigError: the source is a stream whose size nobody knows.
        DataError: the sample cannot be read.
    """
    blocks = feed.blocks
    if isinstance(blocks, TokenStore):
        return Size(len(blocks), float(blocks.tokens), exact=True)
    if blocks.num_rows is None and blocks.num_bytes is None:
        raise ConfigError(
            f"source {feed.name!r} is a stream of unknown size; give `max_steps` and weights "
            "instead of `num_train_epochs` and `temperature`."
        )
    assert feed.encoder is not None
    encoder = feed.encoder.fresh()
    chosen = range(0, len(blocks), max(1, len(blocks) // (SAMPLED_ROWS if blocks.by_row else 8)))
    sampled, rows_in_chosen = _sample(blocks, chosen)
    encoder.encode(sampled)
    rows = blocks.num_rows or round(rows_in_chosen * len(blocks) / len(chosen))
    factor = rows / max(len(sampled), 1)
    stats = encoder.stats
    return Size(stats.examples * factor, stats.tokens * factor, exact=len(sampled) == rows)


def _sample(blocks: Blocks, chosen: Sequence[int]) -> tuple[list[Located], int]:
    """Rows from the beginnings of chosen blocks, and how many rows all of these blocks have."""
    sampled: list[Located] = []
    rows = 0
    most = max(1, SAMPLED_ROWS // len(chosen))
    for block in chosen:
        located = blocks.read(block)
        part = list(islice(located, most))
        sampled += part
        if blocks.num_rows is None:
            rows += blocks.count(block)
    return sampled, rows
