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
    """The rows of a batch whose values were counted, once nothing in it points outside of it.

    Raises:
        ValueError or OverflowError: a row cannot be read.
    """
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
    """A column without its dictionary, which Python's values would be made of slowly."""
    try:
        column.validate(full=True)
    except ValueError as error:
        if "UTF8" not in str(error):
            raise
    return column.dictionary_decode()  # A text that no row of these has may be none.


def _bytes_of(batch: Any) -> int:
    """About the bytes of all values, those that are stored once for many of them each time.

    Raises:
        DataError: a column has a type that is not read.
    """
    hiding = [number for number, kind in enumerate(batch.schema.types) if _hides(kind)]
    if not hiding:
        return int(batch.nbytes)
    return sum(
        _weight(column) if number in hiding else int(column.nbytes)
        for number, column in enumerate(batch.columns)
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
    import pyarrow as pa
    import pyarrow.compute as pc

    indices, values = array.indices.drop_null(), array.dictionary
    if _hides(values.type) or pa.types.is_nested(values.type):
        raise DataError(f"a dictionary of {values.type} is not read; write plain values")
    if pa.types.is_primitive(values.type) or pa.types.is_fixed_size_binary(values.type):
        return len(indices) * max(_VALUE, values.type.bit_width // 8)
    try:
        return int(pc.sum(pc.binary_length(values).take(indices)).as_py() or 0)
    except (pa.ArrowException, IndexError) as error:
        raise DataError(f"a value is not in its dictionary ({error}); it is broken") from None


def _weight_of_views(array: Any) -> int:
    """Of views, which may all lie on the same bytes."""
    import numpy as np

    views = np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset * 4 :: 4][: len(array)]
    return int(np.maximum(views.astype(np.int64), 0).sum())
