"""JSON files that hold a list of rows, or an object that holds exactly one such list.

The text is parsed value by value, so that a file of any size takes the memory of one row.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.chunks import Chained, Chunks, Located
from controlllm.data.sources.files import SourceFile, reading
from controlllm.data.sources.limits import weight
from controlllm.data.sources.lines import LineChunks, check_row, parse_json, too_long
from controlllm.data.sources.registry import READERS, FileChunks, register_chunks

__all__ = ["JsonText", "json_chunks", "read_json"]

_PIECE = 2**16
_NUMBER_END = 4
_SPACE = re.compile(r"[ \t\n\r]*")
_IN_TEXT = re.compile(r'\\(?:.|$)|"', re.DOTALL)
_BRACKETS = re.compile(r'["\[\]{}]')
_AFTER_PLAIN = re.compile(r"[\s,\]}:]")
_decoder = json.JSONDecoder()


class JsonText:
    """The text of a file: what was looked at is let go.

    Args:
        opened: its bytes, UTF-8.
        most: characters of a value that is parsed; one that is longer can only be left out.
    """

    def __init__(self, opened: IO[bytes], most: int) -> None:
        self._opened = opened
        self._most = most
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes = self._lines = self._columns = self._at = 0
        self._text, self._ended = "", False

    def peek(self) -> str:
        """The next character that is no space; nothing at the end."""
        while True:
            self._at = self._end_of_space()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, mark: str) -> None:
        """Go on behind a character that has to come next.

        Raises:
            DataError: another one does.
        """
        if self.peek() != mark:
            raise self._wrong(f"Expecting {mark!r}", self._at)
        self._at += 1

    def end(self) -> None:
        """Check that nothing follows.

        Raises:
            DataError: something does.
        """
        if self.peek():
            raise self._wrong("Extra data", self._at)

    def value(self) -> tuple[Any, str]:
        """The next value and its spelling; no spelling where it was too long and left out.

        Raises:
            DataError: it is no JSON, or nested too deeply.
        """
        self.peek()
        while True:
            try:
                value, end = _decoder.raw_decode(self._text, self._at)
                if self._is_whole(end) or not self._more():
                    spelling = self._text[self._at : end]
                    self._at = end
                    return value, spelling
            except RecursionError:
                raise DataError("JSON nested too deeply") from None
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > self._most:
                    self.skip()
                    return None, ""
                place = error.pos - self._at
                if not self._more():
                    raise self._wrong(error.msg, self._at + place) from None
            except ValueError as error:  # A number of more digits than Python takes.
                raise DataError(f"not valid JSON ({error})") from None

    def skip(self, depth: int = 0) -> None:
        """Go on behind the next value, without parsing it.

        Raises:
            DataError: the file ends within it.
        """
        in_text = False
        is_plain = not depth and self.peek() not in ("", '"', "[", "{")
        while True:
            pattern = _AFTER_PLAIN if is_plain else _IN_TEXT if in_text else _BRACKETS
            found = pattern.search(self._text, self._at)
            if found is None or found[0] == "\\":
                self._at = len(self._text) if found is None else found.start()
                if not self._more():
                    raise self._wrong("the file ends within a value", len(self._text))
                continue
            self._at = found.start() if is_plain else found.end()
            if is_plain:
                return
            if found[0] == '"':
                in_text = not in_text
            elif not in_text:
                depth += 1 if found[0] in "[{" else -1
            if not depth and not in_text:
                return

    def _is_whole(self, end: int) -> bool:
        """Whether a value that ends there does not go on in what is not read yet (`1.`, `1e+`)."""
        rest = self._text[end : end + _NUMBER_END]
        return len(rest) == _NUMBER_END or bool(rest and rest[0] in " \t\n\r,]}:")

    def _end_of_space(self) -> int:
        found = _SPACE.match(self._text, self._at)
        return found.end() if found else self._at

    def _more(self) -> bool:
        """Read on, twice as much as is waiting; whether there was something."""
        if self._ended:
            return False
        data = self._opened.read(max(_PIECE, len(self._text) - self._at))
        self._ended = not data
        pending = len(self._decode.getstate()[0])
        try:
            text = self._decode.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            place = self._bytes - pending + error.start
            raise DataError(f"not valid UTF-8 ({error.reason} at byte {place})") from None
        self._bytes += len(data)
        line, self._columns = self._place(self._at)
        self._lines = line
        self._text, self._at = self._text[self._at :] + text, 0
        return not self._ended

    def _place(self, position: int) -> tuple[int, int]:
        """Lines and columns before a position of the text that is held."""
        lines = self._text.count("\n", 0, position)
        if not lines:
            return self._lines, self._columns + position
        return self._lines + lines, position - self._text.rindex("\n", 0, position) - 1

    def _wrong(self, what: str, position: int) -> DataError:
        line, column = self._place(position)
        return DataError(f"not valid JSON ({what}: line {line + 1} column {column + 1})")


@register_chunks("json", ".json")
def json_chunks(files: Sequence[SourceFile], source: SourceConfig) -> Chunks:
    """Chunks of `.json` files; those that hold JSON lines after all are cut like them."""
    parts: list[Chunks] = []
    group: list[SourceFile] = []
    kinds = [_holds_lines(file, source) for file in files]
    for number, file in enumerate(files):
        group.append(file)
        if number + 1 == len(files) or kinds[number + 1] != kinds[number]:
            parts.append((LineChunks if kinds[number] else FileChunks)(group, source))
            group = []
    return Chained(parts) if len(parts) > 1 else parts[0]


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
    try:
        with file.open() as opened:
            text = JsonText(opened, _most(limit))
            if (first := text.peek()) == "[":
                yield from _rows(file, text, limit)
                return text.end()
            if first != "{":
                raise DataError(f"a list of rows is expected, not {type(text.value()[0]).__name__}")
            keys = _keys_of_lists(text)
        with file.open() as opened:
            text = JsonText(opened, _most(limit))
            if len(keys) == 1:
                _keys_of_lists(text, keys[0])
                yield from _rows(file, text, limit)
            else:  # A single row in JSON-lines spelling is an object as well.
                yield f"{file}, row 0", _row(*text.value(), limit)
    except DataError as error:
        raise DataError(f"{file}: {error}.") from None


def _most(limit: int) -> int:
    """Characters of a row that is parsed: spaces between its values are no part of its size."""
    return 2 * limit + 2**16


def _rows(file: SourceFile, text: JsonText, limit: int) -> Iterator[Located]:
    """The elements of the list that comes next."""
    text.take("[")
    number = 0
    while text.peek() != "]":
        if number:
            text.take(",")
        yield f"{file}, row {number}", _row(*text.value(), limit)
        number += 1
    text.take("]")


def _row(value: Any, spelling: str, limit: int) -> Any:
    if not spelling:
        return DataError(f"the row has more bytes than `max_row_bytes`, which is {limit:,}")
    if 4 * len(spelling) > limit and (length := weight(value)) > limit:
        return too_long(length, limit)
    return check_row(value, spelling.encode())


def _keys_of_lists(text: JsonText, until: str | None = None) -> list[str]:
    """The keys of an object that hold lists of objects."""
    found: list[str] = []
    mark = "{"
    while text.peek() != "}" or mark == "{":
        text.take(mark)
        if (mark, text.peek()) == ("{", "}"):
            break
        mark = ","
        key = str(text.value()[0])
        text.take(":")
        if text.peek() != "[":
            text.skip()
        elif key == until:
            return found
        else:
            text.take("[")
            found += [key] if text.peek() == "{" else []
            text.skip(depth=1)
    text.take("}")
    text.end()
    return found
