"""CSV and TSV: a header line, then rows, read line by line."""

import csv
from collections.abc import Iterator
from typing import Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.blocks import Located
from controlllm.data.sources.files import SourceFile, ending
from controlllm.data.sources.filewise import register_reader
from controlllm.data.sources.lines import bounded_lines

__all__ = ["read_csv"]


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
                yield f"{file}:{begin}", _row(header, values)


def _next(reader: Any) -> list[str] | str | None:
    """The next record, what is wrong with it, or None at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        return str(error)


def _row(header: list[str], values: list[str] | str) -> dict[str, str] | DataError:
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
