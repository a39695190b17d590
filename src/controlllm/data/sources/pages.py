"""Pages of Parquet files, looked at as they are read, before Arrow unpacks them.

A page is a short head (in Thrift's compact form) and its data. The head says how many bytes the
page becomes and how many values it holds: a list of a billion equal numbers takes some ten bytes.
What the footer of the file says is no more than a promise, so it is held against the heads.
"""

import bisect
import io
from dataclasses import dataclass
from typing import IO, Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.limits import check_unpacked, read_signed, read_unsigned

__all__ = ["CheckedPages", "Column", "columns_of"]

_MOST_HEAD = 2**20
_DEEPEST = 16
_VALUE = 8
_DICTIONARY_PAGE = 2
_SIZE, _STORED, _DATA, _DICTIONARY, _DATA_V2 = 2, 3, 5, 7, 8
_DELTA_BYTES = 7
"""Numbers of Parquet's own description: of fields, and of the encoding DELTA_BYTE_ARRAY."""


@dataclass(frozen=True)
class Column:
    """A column of a row group, as the footer says."""

    name: str
    start: int
    """Where its pages begin."""
    stored: int
    """Their bytes."""
    unpacked: int
    """Bytes that they become."""
    has_lists: bool
    """Whether a row may hold several of its values."""
    has_dictionary: bool
    """Whether it may spell values once for many rows."""
    spells_once: bool
    """Whether pyarrow can keep what its dictionary spells once for many rows so."""
    grows: bool
    """Whether a value may be spelt in other ways by less than it is."""


def columns_of(footer: Any, group: int) -> list[Column]:
    """The columns of a row group."""
    return sorted(
        (
            _column(footer.row_group(group).column(number), footer.schema.column(number))
            for number in range(footer.num_columns)
        ),
        key=lambda column: column.start,
    )


def _column(told: Any, kind: Any) -> Column:
    start, logical, encodings = told.data_page_offset, kind.logical_type.type, told.encodings
    if told.has_dictionary_page and told.dictionary_page_offset:
        start = min(start, told.dictionary_page_offset)
    has_dictionary = told.has_dictionary_page or any("DICTIONARY" in name for name in encodings)
    is_bytes = kind.physical_type == "BYTE_ARRAY" and logical != "DECIMAL"
    spells_once = has_dictionary and is_bytes and logical in ("NONE", "STRING")
    grows = "DELTA_BYTE_ARRAY" in encodings or (has_dictionary and is_bytes and not spells_once)
    sizes = told.total_compressed_size, told.total_uncompressed_size
    has_lists = kind.max_repetition_level > 0
    return Column(kind.path, start, *sizes, has_lists, has_dictionary, spells_once, grows)


class CheckedPages:
    """A Parquet file for Arrow to read: heads of pages are checked as they pass by."""

    closed = False

    def __init__(
        self, file: IO[bytes], name: str, columns: list[Column], source: SourceConfig
    ) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell
        self._starts = [column.start for column in columns]
        self._columns = [_ColumnPages(f"{name}, column {c.name!r}", c, source) for c in columns]

    def read(self, size: int = -1) -> bytes:
        """Bytes of the file.

        Raises:
            DataError: the head of a page among them says that it becomes too much.
        """
        start = self._file.tell()
        data = self._file.read(size)
        number = max(0, bisect.bisect_right(self._starts, start) - 1)
        for pages in self._columns[number:]:
            if pages.column.start >= start + len(data):
                break
            pages.look(start, data)
        return data


class _ColumnPages:
    """The pages of a column in a row group, whose heads are read as they come."""

    def __init__(self, what: str, column: Column, source: SourceConfig) -> None:
        self.column, self._what, self._source = column, what, source
        self._next, self._end, self._head = column.start, column.start + column.stored, b""
        self._values = self._stored = self._unpacked = 0

    def look(self, start: int, data: bytes) -> None:
        """Look at the bytes of the file from `start` on."""
        while self._next < self._end:
            at = self._next + len(self._head) - start
            if not 0 <= at < len(data):
                return
            # A head is hardly ever longer than this; of a longer one the rest is taken next.
            self._head += data[at : at + 64 + len(self._head)]
            head = io.BytesIO(self._head)
            try:
                told = _struct(head)
            except IndexError:
                if len(self._head) > _MOST_HEAD:
                    raise DataError(f"{self._what}: the head of a page is broken.") from None
                continue
            self._check(told)
            self._next += head.tell() + told[_STORED]
            self._head = b""

    def _check(self, head: dict[int, Any]) -> None:
        size, stored = head.get(_SIZE, -1), head.get(_STORED, -1)
        page = head.get(_DATA) or head.get(_DATA_V2) or {}
        values = page.get(1, 0)
        if min(size, stored, values) < 0:
            raise DataError(f"{self._what}: the head of a page is broken.")
        check_unpacked(f"{self._what}, a page", size, stored, self._source)
        self._stored, self._unpacked = self._stored + stored, self._unpacked + size
        is_delta = page.get(4 if _DATA_V2 in head else 2) == _DELTA_BYTES
        told = self.column
        if (
            (head.get(1) == _DICTIONARY_PAGE and not told.has_dictionary)
            or (is_delta and not told.grows)
            or (told.grows and self._unpacked > told.unpacked)
        ):
            raise DataError(
                f"{self._what}: its pages are not as the footer says; the file is broken."
            )
        self._values += values
        if told.has_lists:
            what = f"{self._what}: its lists in one row group"
            check_unpacked(what, self._values * _VALUE, self._stored, self._source)


def _struct(data: IO[bytes], depth: int = 0) -> dict[int, Any]:
    """The struct that comes next in Thrift's compact form: numbers of fields -> values.

    An `IndexError` says that the data ends within it, or that it is none.
    """
    if depth > _DEEPEST:
        raise IndexError
    found: dict[int, Any] = {}
    field = 0
    while kind := data.read(1)[0]:
        field = field + (kind >> 4) if kind >> 4 else read_signed(data)
        found[field] = _value(data, kind & 15, depth)
    return found


def _value(data: IO[bytes], kind: int, depth: int) -> Any:
    if kind in (1, 2):  # true, false
        return kind == 1
    if kind in (4, 5, 6):  # integers
        return read_signed(data)
    if kind == 12:
        return _struct(data, depth + 1)
    if kind in (9, 10):  # lists
        size = data.read(1)[0]
        # Booleans in lists take a byte each.
        item = 3 if size & 15 in (1, 2) else size & 15
        for _ in range(size >> 4 if size >> 4 < 15 else read_unsigned(data)):
            _value(data, item, depth + 1)
        return None
    if kind not in (3, 7, 8):  # a byte, a double, bytes
        raise IndexError
    size = {3: 1, 7: 8}.get(kind) or read_unsigned(data)
    if len(data.read(size)) < size:
        raise IndexError
    return None
