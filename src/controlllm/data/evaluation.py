"""The fixed batches of a held-out source: in order, each target exactly once."""

from collections.abc import Sequence
from itertools import islice

from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.data.batches import TRAIN, Batch, Member, collate, pad_id
from controlllm.data.config import DataConfig, SourceConfig
from controlllm.data.encode import Example, RowEncoder, SourceStats, encode_rows
from controlllm.data.feeds import open_source
from controlllm.data.packing import fill_slots
from controlllm.data.plugins import load_plugins
from controlllm.data.prepare import needs_pass, prepare_source, prepared_store
from controlllm.data.store import TokenStore

__all__ = ["eval_batches", "read_examples"]


def read_examples(
    source: SourceConfig,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    limit: int | None = None,
) -> tuple[list[Example], SourceStats]:
    """The first examples of a held-out source, in order; no more rows are read than needed.

    Raises:
        DataError: the source is missing, empty or unreadable.
    """
    load_plugins(config)
    encoder, blocks = RowEncoder(source, tokenizer, config), open_source(source, config)
    if needs_pass(source):
        store: TokenStore | None = prepare_source(encoder, blocks)
    else:
        store = prepared_store(encoder, blocks)
    if store is not None:
        examples = [store[i] for i in range(min(len(store), limit or len(store)))]
        return examples, store.stats
    rows = encode_rows(encoder, blocks.rows())
    examples = list(islice((example for _, made in rows for example in made), limit))
    if not examples:
        raise DataError(encoder.why_empty())
    return examples, encoder.stats


def eval_batches(
    source: SourceConfig | Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    batch_size: int,
    limit: int | None = None,
) -> list[Batch]:
    """All batches of a held-out source, in a fixed order; each target is in them exactly once.

    Args:
        source: a source, or its examples.
        tokenizer: a fast tokenizer.
        config: template, targets, `max_length`, packing.
        batch_size: rows or slots of a batch; the last batch may have fewer.
        limit: use only the first so many examples.

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
