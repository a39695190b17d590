"""The fixed batches of a held-out source: in order, each target exactly once."""

import logging
from collections.abc import Iterable, Sequence
from itertools import chain, islice

from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.data.cache.prepare import needs_pass, prepare_source, prepared_store
from controlllm.data.config.data_config import DataConfig
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import Example, RowEncoder, SourceStats, encode_rows
from controlllm.data.loader.collate import TRAIN, Batch, Member, collate, pad_id
from controlllm.data.loader.open_source import open_source
from controlllm.data.loader.packing import fill_slots
from controlllm.data.loader.plugins import load_plugins

__all__ = ["eval_batches", "read_examples"]

log = logging.getLogger(__name__)


def read_examples(
    source: SourceConfig,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    limit: int | None = None,
) -> tuple[list[Example], SourceStats]:
    """The first examples of a held-out source, in order; no more rows are read than needed.

    `limit` is the most examples, by default the config's `max_eval_samples`; its `max_eval_tokens`
    bounds what nothing else does.

    Raises:
        DataError: the source is missing, empty or unreadable.
    """
    load_plugins(config)
    limit = limit or config.max_eval_samples
    bound = config.max_eval_tokens if limit is None and source.max_rows is None else None
    encoder, chunks = RowEncoder(source, tokenizer, config), open_source(source, config)
    store = (
        prepare_source(encoder, chunks) if needs_pass(source) else prepared_store(encoder, chunks)
    )
    if store is not None:
        made: Iterable[Example] = map(store.__getitem__, range(len(store)))
    else:
        rows = encode_rows(encoder, chunks.rows())
        made = chain.from_iterable(examples for _, examples in rows)
    kept, stats = _first(made, limit, bound, source), store.stats if store else encoder.stats
    if not kept:
        raise DataError(encoder.why_empty())
    stats.warn_of_few_targets(source.name, config)
    return kept, stats


def _first(
    examples: Iterable[Example], limit: int | None, bound: int | None, source: SourceConfig
) -> list[Example]:
    """The first examples: so many, or of so many tokens in all; a cut at the bound is told."""
    kept: list[Example] = []
    tokens = 0
    for example in islice(examples, limit):
        tokens += len(example)
        if kept and bound is not None and tokens > bound:
            text = "Held-out set %s: only its first %s examples are measured, which have %s tokens "
            text += "(data.max_eval_tokens=%s; null measures all)."
            sizes = f"{len(kept):,}", f"{tokens - len(example):,}"
            log.warning(text, source.name, *sizes, bound)
            break
        kept.append(example)
    return kept


def eval_batches(
    source: SourceConfig | Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    batch_size: int,
    limit: int | None = None,
) -> list[Batch]:
    """All batches of a held-out source, in a fixed order; each target is in them exactly once.

    `source` may be its examples. A batch has `batch_size` rows or slots, the last perhaps fewer;
    `limit` takes only the first so many examples.

    Raises:
        DataError: the source is missing, empty or unreadable.
    """
    if isinstance(source, SourceConfig):
        source, _ = read_examples(source, tokenizer, config, limit)
    examples = source[:limit]
    lengths = [len(example) for example in examples]
    members: list[list[Member]]
    if config.packing:
        slots = fill_slots(lengths, config.max_length, config.packing_lookahead)
        members = [[(examples[i], TRAIN) for i in slot] for slot in slots]
    else:  # Rows of like length together: little padding.
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        members = [[(examples[i], TRAIN)] for i in order]
    return [
        collate(members[start : start + batch_size], config, pad_id(tokenizer))
        for start in range(0, len(members), batch_size)
    ]
