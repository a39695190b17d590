"""Record batches of Arrow -> rows; what Parquet, Arrow files and saved data sets share."""

from collections.abc import Iterator
from typing import Any

from controlllm.common.errors import DataError
from controlllm.data.sources.lines import too_long

__all__ = ["batch_rows"]


def batch_rows(batch: Any, limit: int) -> Iterator[Any]:
    """The rows of a `RecordBatch` as dicts; a row that cannot be had is a `DataError`.

    Args:
        batch: a `pyarrow.RecordBatch`.
        limit: the most bytes of a row.
    """
    if batch.num_rows <= 1:
        if batch.num_rows:
            yield _row(batch, limit)
        return
    if batch.nbytes <= limit:
        try:
            yield from batch.to_pylist()
            return
        except (ValueError, OverflowError):  # A text that is not UTF-8, a time out of range.
            pass
    middle = batch.num_rows // 2
    yield from batch_rows(batch.slice(0, middle), limit)
    yield from batch_rows(batch.slice(middle), limit)


def _row(batch: Any, limit: int) -> Any:
    if batch.nbytes > limit:
        return too_long(batch.nbytes, limit)
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return DataError(f"not valid UTF-8 ({error.reason} at byte {error.start})")
    except (ValueError, OverflowError) as error:
        return DataError(f"a value cannot be read ({error})")
