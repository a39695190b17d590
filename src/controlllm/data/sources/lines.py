"""JSON lines: one object per line; lines of white space only are no rows."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from controlllm.common.errors import DataError
from controlllm.data.sources.chunks import Located
from controlllm.data.sources.limits import weight
from controlllm.data.sources.ranges import Range, RangeChunks
from controlllm.data.sources.registry import register_chunks

__all__ = ["BOM", "LineChunks", "bounded", "bounded_lines", "parse_json", "parse_row", "too_long"]

BOM = b"\xef\xbb\xbf"
_PIECE = 2**16
_SLACK = 2**14
DEPTH = 128
"""The most levels of a row."""


def bounded_lines(file: IO[bytes], limit: int) -> Iterator[tuple[bytes | None, int]]:
    """(line, its length in bytes); the line is None where it is longer than `limit`.

    Lines longer than that are read over piece by piece, so no line can fill the memory.
    """
    while line := file.readline(limit + 2):  # The line's end may be two bytes more.
        whole = line.endswith(b"\n") or len(line) < limit + 2
        if len(line) <= limit or (whole and len(line.rstrip(b"\r\n")) <= limit):
            yield line, len(line)
            continue
        length = len(line)
        while not line.endswith(b"\n") and (line := file.readline(_PIECE)):
            length += len(line)
        yield None, length


def too_long(length: int, limit: int) -> DataError:
    """The error of a row that is too long."""
    return DataError(f"the row has {length:,} bytes; `max_row_bytes` is {limit:,}")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some pairs; of two values under one key, `json` keeps the last in silence."""
    made = dict(pairs)
    if len(made) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise DataError(f"the key {key!r} stands twice")
    return made


_decode = json.JSONDecoder(object_pairs_hook=_no_key_twice).decode


def parse_json(data: bytes) -> Any:
    """The value that JSON in UTF-8 spells.

    Raises:
        DataError: it is not UTF-8, not JSON, nested too deeply, or an object has one key twice.
    """
    try:
        return _decode(data.removeprefix(BOM).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not valid UTF-8 ({error.reason} at byte {error.start})") from None
    except ValueError as error:  # Also numbers of more digits than Python takes.
        raise DataError(f"not valid JSON ({error})") from None
    except RecursionError:
        raise DataError("JSON nested too deeply") from None


def bounded(row: Any, stored: int, limit: int) -> Any:
    """A row, or the error that it is too long; one of few stored bytes is not looked at."""
    return row if stored <= limit or (length := weight(row)) <= limit else too_long(length, limit)


def parse_row(line: bytes) -> Any:
    """The object on a line, or the `DataError` that says what is wrong with it."""
    try:
        row = parse_json(line)
    except DataError as error:
        return error
    if not isinstance(row, dict):
        return DataError(f"a row must map columns to values; this is a {type(row).__name__}")
    # Recursive functions must be able to walk through a row.
    if line.count(b"[") + line.count(b"{") > DEPTH and _depth(row) > DEPTH:
        return DataError(f"JSON nested too deeply (more than {DEPTH} levels)")
    if b"\\ud" in line or b"\\uD" in line:  # Only these can be half a character.
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return DataError("a text holds half of a surrogate pair, which is no character")
    return row


def _depth(row: Any) -> int:
    """How many lists and objects lie within one another."""
    depth, level = 0, [row]
    while level := [value for value in level if isinstance(value, dict | list)]:
        depth += 1
        level = [
            v for value in level for v in (value.values() if isinstance(value, dict) else value)
        ]
    return depth


@register_chunks("jsonl", ".jsonl", ".ndjson")
class LineChunks(RangeChunks):
    """JSON lines, cut at the first line that begins in each range of bytes."""

    def read_range(self, part: Range, skip: int) -> Iterator[Located]:
        """The rows whose lines begin in `part`."""
        limit = self.source.max_row_bytes
        counted = part.end is None or part.start == 0
        for number, position, line, length in self._lines(part):
            if line is not None and line.isspace():
                continue
            if skip:
                skip -= 1
                continue
            place = f"{part.file}:{number}" if counted else f"{part.file}, byte {position}"
            yield place, too_long(length, limit) if line is None else parse_row(line)

    def count_range(self, part: Range) -> int:
        """How many lines that are not blank begin in `part`."""
        return sum(line is None or not line.isspace() for _, _, line, _ in self._lines(part))

    def _lines(self, part: Range) -> Iterator[tuple[int, int, bytes | None, int]]:
        """(number, position, line, length) of the lines that begin in `part`."""
        with part.file.open(part.bytes(_SLACK)) as file:
            position = _first_line(file, part)
            if part.ends_before(position):
                return
            lines = bounded_lines(file, self.source.max_row_bytes)
            for number, (line, length) in enumerate(lines, start=1):
                yield number, position, line, length
                position += length
                if part.ends_before(position):
                    return


def _first_line(file: IO[bytes], part: Range) -> int:
    """Seek to the first line that begins in `part`; its position, or any behind the end."""
    if part.start == 0:
        return 0
    position = part.start - 1
    file.seek(position)
    while piece := file.readline(_PIECE):
        position += len(piece)
        if piece.endswith(b"\n") or part.ends_before(position):
            return position
    assert part.end is not None
    return part.end
