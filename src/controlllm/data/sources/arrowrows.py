"""Record batches of Arrow -> rows; what Parquet, Arrow files and saved data sets share.

A batch of some bytes may mean many more: a dictionary spells a value once for many rows, and a list
of a billion nulls takes no bytes at all. So values are counted before they become Python's.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from controlllm.common.errors import DataError
from controlllm.data.sources.lines import too_long

__all__ = ["batch_rows"]

_VALUE = 8
"""Bytes that a value takes in a Python list at least."""


def batch_rows(batch: Any, limit: int) -> Iterator[Any]:
    """The rows of a `RecordBatch` as dicts; a row that cannot be had is a `DataError`.

    Args:
        batch: a `pyarrow.RecordBatch`, from anywhere.
        limit: the most bytes of a row.
    """
    if not batch.num_rows:
        return
    if batch.num_rows == 1:
        yield _row(batch, limit)
        return
    if _bytes_of(batch) <= limit:
        try:
            batch.validate(full=True)
            yield from batch.to_pylist()
            return
        except (ValueError, OverflowError):  # A text that is not UTF-8, a time out of range.
            pass
    middle = batch.num_rows // 2
    yield from batch_rows(batch.slice(0, middle), limit)
    yield from batch_rows(batch.slice(middle), limit)


def _row(batch: Any, limit: int) -> Any:
    if (length := _bytes_of(batch)) > limit:
        return too_long(length, limit)
    try:
        batch.validate(full=True)
        return batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        text = str(error)
        if isinstance(error, UnicodeDecodeError):
            text = f"{error.reason} at byte {error.start}"
        return DataError(
            f"not valid UTF-8 ({text})" if "UTF8" in text or "utf" in text.lower()
            else f"a value cannot be read ({text})"
        )  # fmt: skip


def _bytes_of(batch: Any) -> int:
    """About the bytes of all values, those that are stored once for many of them each time.

    Raises:
        DataError: a column has a type that is not read.
    """
    return sum(
        _weight(column) if _hides(column.type) else int(column.nbytes) for column in batch.columns
    )


@lru_cache(1024)
def _hides(kind: Any) -> bool:
    """Whether values of a type may be many more bytes than are stored for them."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _hides(kind.storage_type)
    is_type = pa.types
    if any(is_odd(kind) for is_odd in _odd_types()):
        raise DataError(f"a column of type {kind} is not read; write it as plain lists and texts")
    if is_type.is_dictionary(kind) or is_type.is_null(kind) or is_type.is_fixed_size_list(kind):
        return True
    if is_type.is_binary_view(kind) or is_type.is_string_view(kind):
        return True
    if is_type.is_list(kind) or is_type.is_large_list(kind) or is_type.is_map(kind):
        inner = kind.value_type if not is_type.is_map(kind) else kind.item_type
        return bool(is_type.is_boolean(inner)) or _hides(inner)
    if is_type.is_struct(kind):
        return not kind.num_fields or any(_hides(field.type) for field in kind)
    return False


@lru_cache(1)
def _odd_types() -> tuple[Any, ...]:
    """Types whose values may lie over one another, or repeat."""
    import pyarrow as pa

    names = ("run_end_encoded", "list_view", "large_list_view", "union")
    found = [getattr(pa.types, f"is_{name}", None) for name in names]
    return tuple(test for test in found if test is not None)


def _weight(array: Any) -> int:
    """Bytes of the values of an array, each counted as often as it is meant."""
    import pyarrow as pa

    kind, count = array.type, len(array)
    is_type, total = pa.types, _VALUE * count
    if isinstance(kind, pa.BaseExtensionType):
        return _weight(array.storage)
    if is_type.is_dictionary(kind):
        return total + _weight_of_chosen(array)
    if is_type.is_struct(kind):
        return total + sum(_weight(array.field(i)) + total for i in range(kind.num_fields))
    if is_type.is_fixed_size_list(kind):
        size = kind.list_size
        return total + _weight(array.values.slice(array.offset * size, count * size))
    if is_type.is_list(kind) or is_type.is_large_list(kind) or is_type.is_map(kind):
        if not count:
            return 0
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return total + _weight(array.values.slice(first, max(0, last - first)))
    if is_type.is_binary_view(kind) or is_type.is_string_view(kind):
        return total + _weight_of_views(array)
    if is_type.is_null(kind):
        return total
    return total + int(array.nbytes)


def _weight_of_chosen(array: Any) -> int:
    """Of a dictionary's values, each as often as it is chosen."""
    import pyarrow.compute as pc

    counts = pc.value_counts(array.indices.drop_null())
    total = 0
    for place, times in zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True):
        if not 0 <= place < len(array.dictionary):
            raise DataError("a value is not in its dictionary; the file is broken")
        value = array.dictionary.slice(place, 1)
        size = value.nbytes if not _hides(value.type) else _weight(value)
        total += times * int(size)
    return total


def _weight_of_views(array: Any) -> int:
    """Of views, which may all lie on the same bytes."""
    import numpy as np

    views = np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset * 4 :: 4][: len(array)]
    return int(np.maximum(views.astype(np.int64), 0).sum())
