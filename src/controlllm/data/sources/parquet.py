"""Parquet: a row group is a chunk, known from the footers alone and read batch by batch."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, count
from typing import Any

import numpy as np

from controlllm.common.errors import DataError
from controlllm.common.storage.remote import describe
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.arrowrows import batch_rows
from controlllm.data.sources.chunks import Located
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.limits import check_unpacked, most_unpacked
from controlllm.data.sources.pages import CheckedPages, Column, columns_of
from controlllm.data.sources.registry import FilesChunks, register_chunks

__all__ = ["RowGroupChunks"]

FOOTERS_AT_ONCE = 8
KEPT_FOOTERS = 16
"""Footers that a process keeps, so that the next row group of a file does not read it again."""

BATCH_BYTES, MOST_BATCH_ROWS = 2**20, 1024
"""About how much of a row group is unpacked at once, so that its size does not matter."""

COLUMN_BUFFER_BYTES, REMOTE_COLUMN_BUFFER_BYTES = 2**16, 2**20
"""How much of a column of a row group is fetched at once, here and elsewhere."""


@register_chunks("parquet", ".parquet", ".pq")
class RowGroupChunks(FilesChunks):
    """The row groups of Parquet files.

    Raises:
        DataError: a file has no valid footer.
    """

    def __init__(self, files: Sequence[SourceFile], source: SourceConfig) -> None:
        for file in files:
            if not file.ranged or file.size is None:
                raise DataError(
                    f"{file}: the server does not read parts of files (no HTTP ranges), which "
                    "parquet needs; download the file and give its path."
                )
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            groups = list(pool.map(_row_groups, files))
        super().__init__(files, source, groups)
        table = [
            (number, group, rows, end - rows)
            for number, sizes in enumerate(groups)
            for group, (rows, end) in enumerate(zip(sizes, accumulate(sizes), strict=True))
            if rows
        ]
        self._groups = np.array(table, dtype=np.int64).reshape(-1, 4)
        self.num_rows = int(self._groups[:, 2].sum())
        self._footers: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the footers: each process reads those it needs."""
        return self.__dict__ | {"_footers": {}}

    def __len__(self) -> int:
        return len(self._groups)

    def count(self, chunk: int) -> int:
        """Rows of a row group, as its footer says."""
        return int(self._groups[chunk, 2])

    def read(self, chunk: int, start: int = 0) -> Iterator[Located]:
        """The rows of a row group; batches before `start` are not made into Python values.

        Raises:
            DataError: the file has changed, is broken or cannot be read; with the row group.
        """
        self.require(chunk)
        number, group, _, first = self._groups[chunk].tolist()
        file, places = self.files[number], count(first + start)
        with _told(file, f"row group {group}"), file.open_raw() as opened:
            footer = self._footer(number, opened)
            if footer.num_row_groups <= group:
                raise DataError(f"{file} has changed: it has no row group {group} any more.")
            columns = columns_of(footer, group)
            pages = CheckedPages(opened, str(file), columns, self.source)
            parquet = _parquet_file(file, pages, footer, columns)
            rows = _batch_rows(footer, group, columns, self.source)
            for batch in parquet.iter_batches(rows, row_groups=[group], use_threads=False):
                if start >= batch.num_rows:
                    start -= batch.num_rows
                    continue
                for row in batch_rows(batch.slice(start), self.source.max_row_bytes):
                    yield f"{file}, row {next(places)}", row
                start = 0

    def _footer(self, number: int, opened: Any) -> Any:
        footer = self._footers.pop(number, None)
        self._footers[number] = footer or _parquet_file(self.files[number], opened).metadata
        if len(self._footers) > KEPT_FOOTERS:
            del self._footers[next(iter(self._footers))]
        return self._footers[number]


def _parquet_file(
    file: SourceFile, opened: Any, footer: Any = None, columns: Sequence[Column] = ()
) -> Any:
    """A file as pyarrow reads it; what its dictionaries spell once stays so in memory."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(
        opened,
        metadata=footer,
        buffer_size=COLUMN_BUFFER_BYTES if file.is_local else REMOTE_COLUMN_BUFFER_BYTES,
        pre_buffer=False,
        read_dictionary=[column.name for column in columns if column.spells_once],
    )


def _row_groups(file: SourceFile) -> list[int]:
    """Rows of each row group of a file."""
    if file.size == 0:
        raise DataError(f"{file} is empty.")
    with _told(file, "footer"), file.open_raw() as opened:
        footer = _parquet_file(file, opened).metadata
        return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]


def _batch_rows(footer: Any, group: int, columns: Sequence[Column], source: SourceConfig) -> int:
    """How many rows of a row group make a batch of a modest size."""
    told = footer.row_group(group)
    bytes_of_row = told.total_byte_size / max(1, told.num_rows)
    most = MOST_BATCH_ROWS
    for column in columns:
        if column.grows:  # Each value may be as long as all that is stored.
            most = min(most, most_unpacked(0, source) // max(1, column.unpacked))
    for number in range(footer.num_columns):
        kind = footer.schema.column(number)
        if kind.physical_type == "FIXED_LEN_BYTE_ARRAY":
            bytes_of_row += kind.length
            check_unpacked(f"column {kind.path!r}", kind.length, told.total_byte_size, source)
    return max(1, min(most, int(BATCH_BYTES / max(1.0, bytes_of_row))))


@contextmanager
def _told(file: SourceFile, part: str) -> Iterator[None]:
    """Errors of Parquet and of the disk or network below it."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise DataError(f"{file}: broken Parquet ({part}: {error}); is it complete?") from error
    except OSError as error:
        if file.filesystem is None and type(error) is OSError and error.errno is None:
            raise DataError(f"{file}: broken Parquet ({part}: {error}); is it complete?") from error
        raise DataError(describe(error, file.address)) from error
