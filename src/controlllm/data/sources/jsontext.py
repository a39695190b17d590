"""JSON text that is parsed value by value, so that a file of any size takes the memory of one."""

import codecs
import json
import re
from typing import IO, Any

from controlllm.common.errors import DataError

__all__ = ["JsonText"]

_CHUNK = 2**16
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

        Args:
            depth: 1 to go on behind the end of a list whose beginning was taken.

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
        data = self._opened.read(max(_CHUNK, len(self._text) - self._at))
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
