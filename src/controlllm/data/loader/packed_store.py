"""Step 7 done beforehand (`packing_strategy: fixed`): a store of documents -> a store of slots.

A slot is an `Example` of several documents. The slots are filled once, by best fit in a shuffled
order of the documents, lie beside the documents on disk, and are what a run shuffles: the least
work for a step. The documents of a slot stay together in every epoch.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise

import numpy as np

from controlllm.common.storage.files import atomic_folder
from controlllm.common.storage.lock import make_once
from controlllm.data.cache.store import META, StoreWriter, TokenStore
from controlllm.data.config.data_config import DataConfig
from controlllm.data.examples.encode import Example
from controlllm.data.loader.packing import fill_slots
from controlllm.data.loader.shuffle import Order, order_of

__all__ = ["slot_store"]

AT_ONCE = 65_536
"""Documents whose slots are filled together; the last slot of each such part may have room left."""


def slot_store(store: TokenStore, config: DataConfig) -> TokenStore:
    """The slots of a store's documents; made once, beside the store if it lies on disk.

    Args:
        store: documents of at most `max_length` tokens.
        config: length of a slot, lookahead, and whether documents are shuffled.

    Raises:
        DataError: the disk is full, or another process did not finish them.
    """
    if store.folder is None:
        slots = chain.from_iterable(_slots(store, config))
        return TokenStore.from_slots(store.name, slots)
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
    lengths = [len(document) for document in documents]
    return Example(
        np.concatenate([document.input_ids for document in documents]),
        np.concatenate([document.labels for document in documents]),
        np.cumsum(lengths[:-1], dtype=np.int32),
    )
