"""JSON files that hold a list of rows, or an object that holds exactly one such list.

A file is cut into the spellings of its rows, each of which is parsed as a JSON line is. So a file
of any size takes the memory of one row, and a bad row does not hide those behind it.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import IO, Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.chunks import Chunks, Located, chained
from controlllm.data.sources.files import SourceFile, reading
from controlllm.data.sources.lines import BOM, LineChunks, bounded, parse_json, parse_row
from controlllm.data.sources.registry import READERS, FileChunks, register_chunks

__all__ = ["JsonText", "json_chunks", "read_json"]

_PIECE = 2**16
# Each goes as far as it can: to the next mark, the end of a text, the end of a number or word.
_SPACE = re.compile(rb"[ \t\n\r]*+")
_BETWEEN = re.compile(rb'[^"\[\]{}]*+')
_IN_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_PLAIN = re.compile(rb"[^\s,\]}:]*+")


class JsonText:
    """The bytes of a file, cut into the spellings of values; what was looked at is let go.

    A value of more than `most` bytes is passed over.
    """

    def __init__(self, opened: IO[bytes], most: int) -> None:
        self._opened, self._most = opened, most
        self._data, self._at, self._before = b"", 0, 0
        while len(self._data) < len(BOM) and self._more():
            pass
        if self._data.startswith(BOM):
            self._at = len(BOM)

    def peek(self) -> bytes:
        """The next byte that is no white space; nothing at the end."""
        while True:
            self._at = _end(_SPACE, self._data, self._at)
            if self._at < len(self._data) or not self._more():
                return self._data[self._at : self._at + 1]

    def take(self, mark: bytes) -> None:
        """Go on behind a byte that has to come next; nothing stands for the end.

        Raises:
            DataError: another one does.
        """
        found = self.peek()
        if found != mark:
            raise self._wrong(f"{_told(mark)} is expected, not {_told(found)}")
        self._at += len(mark)

    def value(self) -> bytes | None:
        """The spelling of the next value, not parsed; None where it was too long.

        Raises:
            DataError: the file ends within it.
        """
        pattern = _BETWEEN if self.peek() in (b'"', b"[", b"{") else _PLAIN
        at, depth, whole = self._at, 0, True
        while True:
            at = _end(pattern, self._data, at)
            mark = self._data[at : at + 1]
            if mark in (b"", b"\\"):  # It goes on in what is not read yet.
                if at - self._at > self._most:
                    self._at, whole = at, False
                at -= self._at
                if self._more():
                    continue
                if pattern is not _PLAIN:
                    raise self._wrong("the file ends within a value")
            if pattern is _PLAIN:
                break
            at += 1
            if pattern is _IN_TEXT:
                pattern = _BETWEEN
            elif mark == b'"':
                pattern = _IN_TEXT
            else:
                depth += 1 if mark in b"[{" else -1
            if not depth and pattern is _BETWEEN:
                break
        spelling = self._data[self._at : at]
        self._at = at
        return spelling if whole and len(spelling) <= self._most else None

    def elements(self) -> Iterator[tuple[bytes, bytes | None]]:
        """(first byte, spelling) of each element of the list that comes next.

        Raises:
            DataError: it is no list, or does not end.
        """
        for first in self.items(b"[", b"]"):
            yield first, self.value()

    def items(self, opening: bytes, closing: bytes) -> Iterator[bytes]:
        """The first byte of each item between two brackets; who asks for one takes it.

        Raises:
            DataError: something else comes next, or it does not end.
        """
        self.take(opening)
        more = self.peek() != closing
        while more:
            if (first := self.peek()) == closing:
                raise self._wrong(f"a value is expected, not {_told(closing)}")
            yield first
            if more := self.peek() != closing:
                self.take(b",")
        self.take(closing)

    def _more(self) -> bool:
        """Read on, twice as much as is waiting; whether there was something."""
        piece = self._opened.read(max(_PIECE, len(self._data) - self._at))
        self._before += self._at
        self._data, self._at = self._data[self._at :] + piece, 0
        return bool(piece)

    def _wrong(self, what: str) -> DataError:
        return DataError(f"not valid JSON ({what}, at byte {self._before + self._at:,})")


def _end(pattern: Any, data: bytes, at: int) -> int:
    """How far a pattern goes that fits everywhere, if only by nothing."""
    return int(pattern.match(data, at).end())


def _told(mark: bytes) -> str:
    return repr(mark.decode("latin-1")) if mark else "the end of the file"


@register_chunks("json", ".json")
def json_chunks(files: Sequence[SourceFile], source: SourceConfig) -> Chunks:
    """Chunks of `.json` files; those that hold JSON lines after all are cut like them."""
    groups = groupby(files, key=lambda file: _holds_lines(file, source))
    kinds = {True: LineChunks, False: FileChunks}
    return chained([kinds[has_lines](list(group), source) for has_lines, group in groups])


def _holds_lines(file: SourceFile, source: SourceConfig) -> bool:
    """Whether the first line is an object and another line follows."""
    if file.size == 0:
        return False
    with reading(file.address), file.open() as opened:
        line = opened.readline(source.max_row_bytes + 2)
        if not line.endswith(b"\n") or not line.rstrip().endswith(b"}"):
            return False
        more = opened.read(2**12).lstrip()
    try:
        return isinstance(parse_json(line), dict) and more.startswith(b"{")
    except DataError:
        return False


@READERS.register("json")
def read_json(file: SourceFile, source: SourceConfig) -> Iterator[Located]:
    """The rows of a list, one after the other.

    Raises:
        DataError: the file is not JSON, or no list of rows.
    """
    limit = source.max_row_bytes
    most = 2 * limit + 2**16  # White space between the values of a row is no part of its size.
    try:
        with file.open() as opened:
            text = JsonText(opened, most)
            if (first := text.peek()) == b"[":
                yield from _rows(file, text, limit)
                return text.take(b"")
            if first != b"{":
                kind = type(parse_json(text.value() or b"")).__name__
                raise DataError(f"a list of rows is expected, not {kind}")
            keys = _keys_of_lists(text)
        with file.open() as opened:
            text = JsonText(opened, most)
            if len(keys) == 1:
                _keys_of_lists(text, keys[0])
                yield from _rows(file, text, limit)
            else:  # A single row in JSON-lines spelling is an object as well.
                yield f"{file}, row 0", _row(text.value(), limit)
    except DataError as error:
        raise DataError(f"{file}: {error}.") from None


def _rows(file: SourceFile, text: JsonText, limit: int) -> Iterator[Located]:
    for number, (_, spelling) in enumerate(text.elements()):
        yield f"{file}, row {number}", _row(spelling, limit)


def _row(spelling: bytes | None, limit: int) -> Any:
    if spelling is None:
        return DataError(f"the row has more bytes than `max_row_bytes`, which is {limit:,}")
    return bounded(parse_row(spelling), 4 * len(spelling), limit)


def _keys_of_lists(text: JsonText, until: str | None = None) -> list[str]:
    """The keys of an object that hold lists of objects; `until` stops before that one's list."""
    found: list[str] = []
    for _ in text.items(b"{", b"}"):
        key = str(parse_json(text.value() or b""))
        text.take(b":")
        if text.peek() != b"[":
            text.value()
        elif key == until:
            return found
        else:
            kind = b""
            for first, _ in text.elements():
                kind = kind or first
            found += [key] if kind == b"{" else []
    text.take(b"")
    return found
