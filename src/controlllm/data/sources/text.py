"""Texts (a file, a paragraph or a line is a document), and tables: CSV and TSV with a header."""

import csv
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import IO, Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.chunks import Located
from controlllm.data.sources.files import SourceFile, ending
from controlllm.data.sources.lines import BOM, bounded_lines, too_long
from controlllm.data.sources.registry import register_reader

__all__ = ["read_csv", "read_text"]


@register_reader("text", ".txt", ".text", ".md", ".markdown", reads=("text_unit",))
def read_text(file: SourceFile, source: SourceConfig) -> Iterator[Located]:
    """Rows with one column, `text`; parts that are blank are no rows."""
    if file.size == 0:
        yield str(file), DataError("the file is empty")
        return
    if source.text_unit == "file":
        with file.open() as opened:
            data = opened.read(source.max_row_bytes + 1)
        too_many = DataError(
            f"the file has more than {source.max_row_bytes:,} bytes; raise `max_row_bytes`, or cut "
            "it with `text_unit: paragraph` or `line`"
        )
        yield str(file), _row(data) if len(data) <= source.max_row_bytes else too_many
        return
    by_line, limit = source.text_unit == "line", source.max_row_bytes
    with file.open() as opened:
        lines = enumerate(bounded_lines(opened, limit), start=1)
        # A line that is too long is None.
        for blank, group in groupby(lines, key=lambda item: (item[1][0] or b"x").isspace()):
            for begin, line in group if not blank else ():
                rest = () if by_line else (more for _, more in group)
                yield f"{file}:{begin}", _document(chain([line], rest), limit)


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


@register_reader("csv", ".csv", ".tsv")
def read_csv(file: SourceFile, source: SourceConfig) -> Iterator[Located]:
    """Rows of a table; `.tsv` files are parted by tabs.

    Raises:
        DataError: a row has more than `max_row_bytes`, so that its end is not known.
    """
    delimiter, limit = "\t" if ending(file.name) == ".tsv" else ",", source.max_row_bytes
    csv.field_size_limit(2**31 - 1)
    record = 0

    def lines(opened: IO[bytes]) -> Iterator[str]:
        """The lines as text; none and no record of them grows beyond the limit."""
        nonlocal record
        for number, (line, length) in enumerate(bounded_lines(opened, limit), start=1):
            record += length
            if line is None or record > limit + 2:
                raise DataError(
                    f"{file}:{number}: a row of more than {limit:,} bytes; is a quote left open? "
                    "(`max_row_bytes` is the limit.)"
                )
            # What is not UTF-8 is kept as it is, so that it can be told row by row.
            plain = line.removeprefix(BOM) if number == 1 else line
            yield plain.decode("utf-8", "surrogateescape")

    with file.open() as opened:
        reader = csv.reader(lines(opened), delimiter=delimiter, strict=True)
        header = _next(reader)
        if isinstance(header, str):
            raise DataError(f"{file}:1: the header is not valid CSV ({header}).")
        while header is not None:
            begin, record = reader.line_num + 1, 0
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
