"""Texts (a file, a paragraph or a line is a document), and tables: CSV and TSV with a header."""

import csv
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.chunks import Located
from controlllm.data.sources.files import SourceFile, ending
from controlllm.data.sources.lines import bounded_lines, too_long
from controlllm.data.sources.registry import register_reader

__all__ = ["read_csv", "read_text"]


@register_reader("text", ".txt", ".text", ".md", ".markdown", reads=("text_unit",))
def read_text(file: SourceFile, source: SourceConfig) -> Iterator[Located]:
    """Rows with one column, `text`; parts that are blank are no rows."""
    if file.size == 0:
        yield str(file), DataError("the file is empty")
    elif source.text_unit == "file":
        yield _whole(file, source.max_row_bytes)
    else:
        yield from _parts(file, source.max_row_bytes, source.text_unit == "line")


def _whole(file: SourceFile, limit: int) -> Located:
    with file.open() as opened:
        data = opened.read(limit + 1)
    if len(data) > limit:
        return str(file), DataError(
            f"the file has more than {limit:,} bytes; raise `max_row_bytes`, or cut it with "
            "`text_unit: paragraph` or `line`"
        )
    return str(file), _row(data)


def _parts(file: SourceFile, limit: int, by_line: bool) -> Iterator[Located]:
    with file.open() as opened:
        lines = enumerate(bounded_lines(opened, limit), start=1)
        for blank, group in groupby(lines, key=lambda numbered: _is_blank(numbered[1][0])):
            for begin, line in group if not blank else ():
                rest = () if by_line else (more for _, more in group)
                yield f"{file}:{begin}", _document(chain([line], rest), limit)


def _is_blank(line: bytes | None) -> bool:
    return line is not None and line.isspace()


def _document(lines: Iterable[tuple[bytes | None, int]], limit: int) -> dict[str, str] | DataError:
    """Lines as one row, or what is wrong with it; what is too long anyway is counted, not kept."""
    length, kept = 0, []
    for line, size in lines:
        length += size
        if line is not None and length <= limit + 2:
            kept.append(line)
    data = b"".join(kept)
    if len(data) < length or len(data.rstrip(b"\r\n")) > limit:
        return too_long(length, limit)
    return _row(data.rstrip(b"\r\n"))


def _row(data: bytes) -> dict[str, str] | DataError:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return DataError(f"not valid UTF-8 ({error.reason} at byte {error.start})")
    return {"text": text.replace("\r\n", "\n")}


class _Lines:
    """The lines of a file as text; none and no record of them grows beyond `limit` bytes."""

    def __init__(self, file: SourceFile, opened: Any, limit: int) -> None:
        self._file, self._limit = file, limit
        self._lines = bounded_lines(opened, limit)
        self.number = 0
        self.record = 0

    def __iter__(self) -> Iterator[str]:
        for line, length in self._lines:
            self.number += 1
            self.record += length
            if line is None or self.record > self._limit + 2:
                raise DataError(
                    f"{self._file}:{self.number}: a row of more than {self._limit:,} bytes; is a "
                    "quote left open? (`max_row_bytes` is the limit.)"
                )
            if self.number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            # What is not UTF-8 is kept as it is, so that it can be told row by row.
            yield line.decode("utf-8", "surrogateescape")


@register_reader("csv", ".csv", ".tsv")
def read_csv(file: SourceFile, source: SourceConfig) -> Iterator[Located]:
    """Rows of a table; `.tsv` files are parted by tabs.

    Raises:
        DataError: a row has more than `max_row_bytes`, so that its end is not known.
    """
    delimiter = "\t" if ending(file.name) == ".tsv" else ","
    csv.field_size_limit(2**31 - 1)
    with file.open() as opened:
        lines = _Lines(file, opened, source.max_row_bytes)
        reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
        header = _next(reader)
        if isinstance(header, str):
            raise DataError(f"{file}:1: the header is not valid CSV ({header}).")
        while header is not None:
            begin, lines.record = lines.number + 1, 0
            values = _next(reader)
            if values is None:
                return
            if values:  # Blank lines are no rows.
                yield f"{file}:{begin}", _record(header, values)


def _next(reader: Any) -> list[str] | str | None:
    """The next record, what is wrong with it, or None at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        return str(error)


def _record(header: list[str], values: list[str] | str) -> dict[str, str] | DataError:
    if isinstance(values, str):
        return DataError(f"not valid CSV ({values})")
    if len(values) != len(header):
        return DataError(
            f"the row has {len(values)} fields, not as many fields as the header ({len(header)})"
        )
    try:
        "".join(values).encode("utf-8")
    except UnicodeEncodeError:
        return DataError("not valid UTF-8")
    return dict(zip(header, values, strict=True))
