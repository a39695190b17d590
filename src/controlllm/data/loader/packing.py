"""Which waiting rows go together into a slot.

`slot_store` fills the slots of a whole source beforehand (`packing_strategy: fixed`): a slot is an
`Example` of several documents. A run then shuffles slots, which is the least work for a step; the
documents of a slot stay together in every epoch.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise

import numpy as np

from controlllm.common.storage.files import atomic_folder
from controlllm.common.storage.lock import make_once
from controlllm.data.cache.store import META, StoreWriter, TokenStore
from controlllm.data.config.data_config import DataConfig
from controlllm.data.examples.encode import Example
from controlllm.data.loader.shuffle import Order, order_of

__all__ = ["choose_for_slot", "fill_slots", "slot_store", "window_is_full"]

CHOICE = 8192
"""Tokens of a slot that are chosen for the best sum; what a slot has beyond them goes by age."""


def window_is_full(rows: int, tokens: int, capacity: int, lookahead: int) -> bool:
    """Whether enough rows wait to choose a slot from: `lookahead` of them, and two slots' worth.

    The second keeps very short rows from leaving slots empty.
    """
    return rows >= lookahead and tokens >= 2 * capacity


def choose_for_slot(lengths: Sequence[int], capacity: int) -> list[int]:
    """Choose the rows that fill a slot best; of equally good choices the one with the oldest rows.

    The oldest row is always in, so no row waits for ever. Among the others every sum is looked at
    (subset sums, as bits of one large integer: bit s is 1 where some of the rows have s tokens).

    `lengths` are tokens of each waiting row, oldest first, each at most `capacity`, the tokens of
    the slot; what is returned are positions among them, rising, the first always 0.
    """
    # The oldest rows are in without a choice, as long as much room is left.
    by_age, room = 1, capacity - lengths[0]
    while by_age < len(lengths) and room - lengths[by_age] >= CHOICE:
        room -= lengths[by_age]
        by_age += 1
    rest = lengths[by_age:]
    sums = _sums_of_last(rest, room)
    missing = sums[0].bit_length() - 1
    chosen = list(range(by_age))
    for position, length in enumerate(rest):
        if not missing:
            break
        if length <= missing and sums[position + 1] >> (missing - length) & 1:
            chosen.append(by_age + position)
            missing -= length
    return chosen


def _sums_of_last(lengths: Sequence[int], limit: int) -> list[int]:
    """For each position the sums up to `limit` that the rows from there on can have, as bits."""
    mask = (1 << (limit + 1)) - 1
    sums = [1]
    for length in reversed(lengths):
        last = sums[-1]
        sums.append((last | last << length) & mask if length <= limit else last)
    return sums[::-1]


def fill_slots(lengths: Sequence[int], capacity: int, lookahead: int) -> Iterator[list[int]]:
    """Pack a finite sequence: each position goes into exactly one slot."""
    waiting: list[int] = []
    upcoming, tokens = iter(range(len(lengths))), 0
    while True:
        while not window_is_full(len(waiting), tokens, capacity, lookahead):
            if (position := next(upcoming, None)) is None:
                break
            waiting.append(position)
            tokens += lengths[position]
        if not waiting:
            return
        slot = [waiting[i] for i in choose_for_slot([lengths[i] for i in waiting], capacity)]
        yield slot
        tokens -= sum(lengths[position] for position in slot)
        taken = set(slot)
        waiting = [position for position in waiting if position not in taken]


AT_ONCE = 65_536
"""Documents whose slots are filled together; the last slot of each such part may have room left."""


def slot_store(store: TokenStore, config: DataConfig) -> TokenStore:
    """The slots of a store's documents; made once, beside the store if it lies on disk.

    Raises:
        DataError: the disk is full, or another process did not finish them.
    """
    if store.folder is None:
        slots = chain.from_iterable(_slots(store, config))
        return TokenStore.from_examples(store.name, list(slots))
    settings = f"{config.max_length}-{config.packing_lookahead}-{config.shuffle:d}"
    folder = store.folder.with_name(f"{store.folder.name}-slots-{settings}")

    def make() -> None:
        with atomic_folder(folder, overwrite=True) as temporary:
            with StoreWriter(temporary, store.vocabulary) as writer:
                phases = [writer.write_all(slots) for slots in _slots(store, config)]
            writer.finish(store.stats, phases=phases if store.phases else None)

    make_once(folder, (folder / META).is_file, make, config.cache_timeout)
    return TokenStore.open(store.name, folder)


def _slots(store: TokenStore, config: DataConfig) -> Iterator[Iterator[Example]]:
    """The slots of each phase of the documents."""
    order = order_of(len(store), config.shuffle, [0], store.phases)
    sizes = store.phases or [len(store)]
    for start, end in pairwise([0, *accumulate(sizes)]):
        yield _fill(store, order, range(start, end), config)


def _fill(
    store: TokenStore, order: Order, positions: range, config: DataConfig
) -> Iterator[Example]:
    for start in range(0, len(positions), AT_ONCE):
        places = [order.at(0, position) for position in positions[start : start + AT_ONCE]]
        lengths = store.lengths_of(places)
        for chosen in fill_slots(lengths, config.max_length, config.packing_lookahead):
            yield _join(store.examples([places[i] for i in chosen]))


def _join(documents: Sequence[Example]) -> Example:
    ids, labels = [one.input_ids for one in documents], [one.labels for one in documents]
    starts = np.cumsum(list(map(len, ids[:-1])), dtype=np.int32)
    return Example(np.concatenate(ids), np.concatenate(labels), starts)
