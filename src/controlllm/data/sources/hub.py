"""Data sets of the Hugging Face Hub, and those that `datasets` holds already.

```
load_dataset(...)                   downloaded first, then mapped: chunk = one row
load_dataset(..., streaming=True)   read over the network: chunk = shard (a file, mostly)
```
"""

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from controlllm.common.errors import DataError
from controlllm.common.text.secrets import hidden
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.arrowrows import batch_rows
from controlllm.data.sources.chunks import Chunks, Located, RowChunks
from controlllm.data.sources.files import digest
from controlllm.data.sources.lines import bounded
from controlllm.data.sources.registry import register_source

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["DatasetChunks", "ShardChunks", "dataset_chunks", "open_hub"]

SAMPLED_ROWS = 64
"""Rows of a large data set that its fingerprint is made of."""

_HASHED_BYTES = 4 * 2**20
_ROWS_AT_ONCE = 1000


@register_source("hub", reads=("subset", "split", "revision", "streaming", "storage_options"))
def open_hub(source: SourceConfig, timeout: float) -> Chunks:
    """Chunks of a data set that `datasets.load_dataset` loads; the path is its name on the Hub.

    `storage_options` may hold a `token`. The time-out is not used: `datasets` has its own
    (`HF_HUB_DOWNLOAD_TIMEOUT`).

    Raises:
        DataError: the package is missing, or the data set cannot be loaded.
    """
    options = dict(source.storage_options)
    wanted: dict[str, Any] = {"name": source.subset, "revision": source.revision}
    wanted |= {"token": options.pop("token", None), "streaming": source.streaming}
    data = _load(source, wanted | ({"storage_options": options} if options else {}))
    if source.streaming:
        chosen = (source.subset, source.split, source.revision)
        return ShardChunks(data, f"{source.path}[{source.split}]", chosen, source.max_row_bytes)
    return dataset_chunks(data, f"{source.path}[{source.split}]", source.max_row_bytes)


def _load(source: SourceConfig, wanted: dict[str, Any]) -> Any:
    try:
        import datasets
    except ImportError:
        text = f"{source.path} needs the package `datasets`: pip install datasets"
        raise DataError(text) from None
    if source.streaming and "[" in source.split:
        raise DataError(
            f"{source.path}: split={source.split!r} cannot be streamed; take a whole split with "
            "`max_rows`, or leave out `streaming`."
        )
    try:
        path = os.path.expanduser(source.path)
        return datasets.load_dataset(path, split=source.split, **wanted)
    # The library raises whatever its many back ends raise; each means that it cannot be loaded.
    except Exception as error:
        guessed = "" if source.source_type else " is no local file, and as a Hub name it"
        raise DataError(
            f"{source.path!r}{guessed} cannot be loaded ({hidden(error)}); check name, subset, "
            "split and revision, the network, and HF_HUB_OFFLINE."
        ) from error


def dataset_chunks(
    dataset: "Dataset", name: str = "dataset", max_row_bytes: int = SourceConfig.max_row_bytes
) -> Chunks:
    """Chunks of a `datasets.Dataset`: each row one, in the order it has (`select`, `shuffle`, ...).

    A set format (`with_format`) is not applied; a row of more than `max_row_bytes` is a bad row.

    Raises:
        DataError: it has no rows.
    """
    if not len(dataset):
        raise DataError(f"{name} holds no rows.")
    return DatasetChunks(dataset, name, max_row_bytes)


class DatasetChunks(RowChunks):
    """The rows of a `datasets.Dataset`.

    Its fingerprint is of the columns, the number of rows, and all or some of them; its stamp is the
    fingerprint that `datasets` gave it, of its origin and of what was done to it.
    """

    def __init__(self, dataset: "Dataset", name: str, max_row_bytes: int) -> None:
        self._dataset, self._name = dataset.with_format("arrow"), name
        self._limit = max_row_bytes
        super().__init__(len(dataset), "", str(dataset._fingerprint))
        self.fingerprint = self._hash()

    def row(self, number: int) -> Located:
        """One row."""
        return next(self._part(number, number + 1))

    def rows(self) -> Iterator[Located]:
        """All rows, many at once."""
        for begin in range(0, len(self), _ROWS_AT_ONCE):
            yield from self._part(begin, min(begin + _ROWS_AT_ONCE, len(self)))

    def _part(self, begin: int, end: int) -> Iterator[Located]:
        table = self._dataset[begin:end] if end - begin > 1 else self._dataset[begin]
        items = (item for batch in table.to_batches() for item in batch_rows(batch, self._limit))
        for row, item in enumerate(items, start=begin):
            yield f"{self._name}, row {row}", item

    def _hash(self) -> str:
        size = len(self)
        step = 1 if self._dataset.data.nbytes <= _HASHED_BYTES else -(-size // SAMPLED_ROWS)
        places = [*range(0, size, step), size - 1]
        rows = self.rows() if step == 1 else map(self.row, places)
        columns = str(self._dataset.data.schema.remove_metadata())
        return digest(columns, size, *(repr(row) for _, row in rows))


class ShardChunks(Chunks):
    """The shards of a streamed data set.

    Raises:
        DataError: it has no rows, or its first row cannot be read.
    """

    def __init__(
        self, dataset: "IterableDataset", name: str, chosen: Sequence[Any], max_row_bytes: int
    ) -> None:
        self._dataset, self._name, self._limit = dataset, name, max_row_bytes
        self._size = dataset.num_shards
        first = next(self.read(0), None)
        if first is None and self._size == 1:
            raise DataError(f"{name} holds no rows.")
        self.fingerprint = digest(*chosen, self._size, str(dataset.features), first and first[1])
        self.stamp = digest(name, self.fingerprint)  # A stream tells no more.

    def __len__(self) -> int:
        return self._size

    def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
        """The rows of a shard.

        Raises:
            DataError: it cannot be read, whatever `datasets` raises; with the shard's number.
        """
        self.require(chunk)
        shard = self._dataset.shard(num_shards=self._size, index=chunk)
        try:
            for row, item in enumerate(islice(iter(shard), start, None), start=start):
                checked = bounded(item, sys.maxsize, self._limit)
                yield f"{self._name}, shard {chunk}, row {row}", checked
        except Exception as error:
            raise DataError(f"{self._name}, shard {chunk} cannot be read ({error}).") from error
