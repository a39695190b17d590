"""Pages of Parquet files, looked at as they are read, before Arrow unpacks them.

A page is a short head (in Thrift's compact form) and its data. The head says how many bytes the
page becomes and how many values it holds: a list of a billion equal numbers takes some ten bytes.
What the footer of the file says is no more than a promise, so it is held against the heads.
"""

import bisect
import os
from dataclasses import dataclass
from typing import IO, Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.limits import check_unpacked

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
    """A column of a row group, as the footer says.

    Attributes:
        name: for messages.
        start: where its pages begin.
        stored: their bytes.
        unpacked: bytes that they become.
        has_lists: whether a row may hold several of its values.
        has_dictionary: whether it may spell values once for many rows.
        spells_once: whether pyarrow can keep what its dictionary spells once for many rows so.
        grows: whether a value may be spelt in other ways by less than it is.
    """

    name: str
    start: int
    stored: int
    unpacked: int
    has_lists: bool
    has_dictionary: bool
    spells_once: bool
    grows: bool


def columns_of(footer: Any, group: int) -> list[Column]:
    """The columns of a row group."""
    found = []
    for number in range(footer.num_columns):
        column_chunk, kind = footer.row_group(group).column(number), footer.schema.column(number)
        start, first = column_chunk.data_page_offset, column_chunk.dictionary_page_offset
        has_dictionary = column_chunk.has_dictionary_page or any(
            "DICTIONARY" in encoding for encoding in column_chunk.encodings
        )
        is_bytes = kind.physical_type == "BYTE_ARRAY" and kind.logical_type.type != "DECIMAL"
        spells_once = has_dictionary and is_bytes and kind.logical_type.type in ("NONE", "STRING")
        found.append(
            Column(
                kind.path,
                min(start, first) if column_chunk.has_dictionary_page and first else start,
                column_chunk.total_compressed_size,
                column_chunk.total_uncompressed_size,
                kind.max_repetition_level > 0,
                has_dictionary,
                spells_once,
                "DELTA_BYTE_ARRAY" in column_chunk.encodings
                or (has_dictionary and is_bytes and not spells_once),
            )
        )
    return sorted(found, key=lambda column: column.start)


class CheckedPages:
    """A Parquet file for Arrow to read: heads of pages are checked as they pass by."""

    closed = False

    def __init__(
        self, file: IO[bytes], name: str, columns: list[Column], source: SourceConfig
    ) -> None:
        self._file = file
        self._starts = [column.start for column in columns]
        self._columns = [_ColumnPages(f"{name}, column {c.name!r}", c, source) for c in columns]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place of the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place of the next byte."""
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        """Bytes of the file.

        Raises:
            DataError: the head of a page among them says that it becomes too much.
        """
        start = self._file.tell()
        data = self._file.read(size)
        number = max(0, bisect.bisect_right(self._starts, start) - 1)
        for column_chunk in self._columns[number:]:
            if column_chunk.column.start >= start + len(data):
                break
            column_chunk.look(start, data)
        return data


class _ColumnPages:
    """The pages of a column in a row group, whose heads are read as they come."""

    def __init__(self, what: str, column: Column, source: SourceConfig) -> None:
        self.column = column
        self._what, self._source = what, source
        self._next = column.start
        self._end = column.start + column.stored
        self._head = b""
        self._values = self._stored = self._unpacked = 0

    def look(self, start: int, data: bytes) -> None:
        """Look at bytes of the file, those of `data` from `start` on.

        Raises:
            DataError: a page becomes too much, or is not as the footer says.
        """
        while self._next < self._end:
            at = self._next + len(self._head) - start
            if not 0 <= at < len(data):
                return
            # A head is hardly ever longer than this; of a longer one the rest is taken next.
            self._head += data[at : at + 64 + len(self._head)]
            reader = _Compact(self._head)
            try:
                head = reader.struct()
            except IndexError:
                if len(self._head) > _MOST_HEAD:
                    raise DataError(f"{self._what}: the head of a page is broken.") from None
                continue
            self._check(head)
            self._next += reader.at + head[_STORED]
            self._head = b""

    def _check(self, head: dict[int, Any]) -> None:
        size, stored = head.get(_SIZE, -1), head.get(_STORED, -1)
        page = head.get(_DATA) or head.get(_DATA_V2) or {}
        is_dictionary = head.get(1) == _DICTIONARY_PAGE
        values = page.get(1, 0)
        if min(size, stored, values) < 0:
            raise DataError(f"{self._what}: the head of a page is broken.")
        check_unpacked(f"{self._what}, a page", size, stored, self._source)
        self._stored, self._unpacked = self._stored + stored, self._unpacked + size
        encoding = page.get(4 if _DATA_V2 in head else 2)
        told = self.column
        if (
            (is_dictionary and not told.has_dictionary)
            or (encoding == _DELTA_BYTES and not told.grows)
            or (told.grows and self._unpacked > told.unpacked)
        ):
            raise DataError(
                f"{self._what}: its pages are not as the footer says; the file is broken."
            )
        self._values += values
        if told.has_lists:
            what = f"{self._what}: its lists in one row group"
            check_unpacked(what, self._values * _VALUE, self._stored, self._source)


class _Compact:
    """Thrift's compact form: structs as the numbers of their fields -> values."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The struct that comes next.

        Raises:
            IndexError: the data ends within it, or it is none.
        """
        if depth > _DEEPEST:
            raise IndexError
        found: dict[int, Any] = {}
        field = 0
        while kind := self._byte():
            field = field + (kind >> 4) if kind >> 4 else self._number()
            found[field] = self._value(kind & 15, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):  # true, false
            return kind == 1
        if kind in (4, 5, 6):  # integers
            return self._number()
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (3, 7):  # a byte, a double
            return self._skip(1 if kind == 3 else 8)
        if kind == 8:  # bytes
            return self._skip(self._unsigned())
        if kind in (9, 10):  # lists
            size = self._byte()
            count = size >> 4 if size >> 4 < 15 else self._unsigned()
            for _ in range(count):
                # Booleans in lists take a byte each.
                self._skip(1) if size & 15 in (1, 2) else self._value(size & 15, depth + 1)
            return None
        raise IndexError

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._data):
            raise IndexError

    def _byte(self) -> int:
        self._skip(1)
        return self._data[self.at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise IndexError

    def _number(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
