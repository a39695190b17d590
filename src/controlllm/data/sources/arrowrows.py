"""Record batches of Arrow -> rows; what Parquet, Arrow files and saved data sets share.

A batch of some bytes may mean many more: a dictionary spells a value once for many rows, and a list
of a billion nulls takes no bytes at all. So values are counted before they become Python's.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from controlllm.common.errors import DataError
from controlllm.data.sources.lines import too_long

__all__ = ["batch_rows"]

_PLAIN = ("string", "large_string", "binary", "large_binary")
"""Types of texts and bytes, each of which lies in memory by itself."""

_VALUE = 8
"""Bytes that a value takes in a Python list at least."""


def batch_rows(batch: Any, limit: int) -> Iterator[Any]:
    """The rows of a `RecordBatch` as dicts; a row that cannot be read is a `DataError`."""
    if not batch.num_rows:
        return
    if batch.num_rows == 1:
        yield _row(batch, limit)
        return
    if _bytes_of(batch) <= limit:
        try:
            yield from _values(batch)
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
        return _values(batch)[0]
    except (ValueError, OverflowError) as error:
        text = str(error)
        if isinstance(error, UnicodeDecodeError):
            text = f"{error.reason} at byte {error.start}"
        return DataError(
            f"not valid UTF-8 ({text})" if "UTF8" in text or "utf" in text.lower()
            else f"a value cannot be read ({text})"
        )  # fmt: skip


def _values(batch: Any) -> list[Any]:
    """The rows of a batch whose values were counted, once nothing in it points outside of it."""
    import pyarrow as pa

    if any(map(pa.types.is_dictionary, batch.schema.types)):
        columns = [
            _spelt_out(column) if pa.types.is_dictionary(column.type) else column
            for column in batch.columns
        ]
        batch = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    batch.validate(full=True)
    rows: list[Any] = batch.to_pylist()
    return rows


def _spelt_out(column: Any) -> Any:
    """A column without its dictionary: Python values are made slowly through one."""
    try:
        column.validate(full=True)
    except ValueError as error:
        if "UTF8" not in str(error):
            raise
    return column.dictionary_decode()  # A text that no row of these has may be none.


def _bytes_of(array: Any) -> int:
    """About the bytes of all values of a `RecordBatch` or array, those stored once each time."""
    import pyarrow as pa

    if isinstance(array, pa.RecordBatch):
        return sum(map(_bytes_of, array.columns))
    kind, count = array.type, len(array)
    if _is(kind, *_PLAIN, "primitive", "decimal"):
        return int(array.nbytes)
    total = _VALUE * count
    if isinstance(kind, pa.BaseExtensionType):
        return _bytes_of(array.storage)
    if _is(kind, "null"):
        return total
    if _is(kind, "dictionary"):
        return total + _bytes_of_chosen(array)
    if _is(kind, "struct"):
        return total + sum(_bytes_of(array.field(i)) + total for i in range(kind.num_fields))
    if _is(kind, "fixed_size_list"):
        size = kind.list_size
        return total + _bytes_of_items(array.values.slice(array.offset * size, count * size))
    if _is(kind, "list", "large_list", "map"):
        if not count:
            return 0
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return total + _bytes_of_items(array.values.slice(first, max(0, last - first)))
    if _is(kind, "binary_view", "string_view"):
        return total + _bytes_of_views(array)
    if _is(kind, "fixed_size_binary"):
        return total + int(array.nbytes)
    # The others' values may lie over one another, or repeat.
    raise DataError(f"a column of type {kind} is not read; write it as plain lists and texts")


def _bytes_of_items(array: Any) -> int:
    """Of the items of lists: each takes a place of its own, however few bits it has."""
    return max(_VALUE * len(array), _bytes_of(array))


def _is(kind: Any, *names: str) -> bool:
    """Whether a type is one of some kinds, as `pyarrow.types` names them."""
    import pyarrow as pa

    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def _bytes_of_chosen(array: Any) -> int:
    """Of a dictionary's values, each as often as it is chosen."""
    import pyarrow as pa
    import pyarrow.compute as pc

    indices, values = array.indices.drop_null(), array.dictionary
    if _is(values.type, "primitive", "fixed_size_binary", "decimal"):
        return len(indices) * max(_VALUE, values.type.bit_width // 8)
    if not _is(values.type, *_PLAIN):
        raise DataError(f"a dictionary of {values.type} is not read; write plain values")
    try:
        return int(pc.sum(pc.binary_length(values).take(indices)).as_py() or 0)
    except (pa.ArrowException, IndexError) as error:
        raise DataError(f"a value is not in its dictionary ({error}); the file is broken") from None


def _bytes_of_views(array: Any) -> int:
    """Of views, which may all lie on the same bytes."""
    views = np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset * 4 :: 4][: len(array)]
    return int(np.maximum(views.astype(np.int64), 0).sum())
