"""Plain text and Markdown: a file, a paragraph or a line is a document."""

from collections.abc import Iterator

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.blocks import Located
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.filewise import register_reader
from controlllm.data.sources.lines import bounded_lines, too_long

__all__ = ["read_text"]


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
    part = _Part(limit)
    begin = 1
    with file.open() as opened:
        for number, (line, length) in enumerate(bounded_lines(opened, limit), start=1):
            blank = line is not None and line.isspace()
            if not blank:
                begin = begin if part.length else number
                part.add(line, length)
            if part.length and (blank or by_line):
                yield f"{file}:{begin}", part.take()
    if part.length:
        yield f"{file}:{begin}", part.take()


class _Part:
    """Lines of one document; those that are too long anyway are counted, not kept."""

    def __init__(self, limit: int) -> None:
        self.length = 0
        self._limit = limit
        self._lines: list[bytes] = []

    def add(self, line: bytes | None, length: int) -> None:
        self.length += length
        if line is not None and self.length <= self._limit + 2:
            self._lines.append(line)

    def take(self) -> object:
        """The row, or what is wrong with it; the part is empty then."""
        data = b"".join(self._lines)
        length, self.length, self._lines = self.length, 0, []
        if len(data) < length or len(data.rstrip(b"\r\n")) > self._limit:
            return too_long(length, self._limit)
        return _row(data.rstrip(b"\r\n"))


def _row(data: bytes) -> dict[str, str] | DataError:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return DataError(f"not valid UTF-8 ({error.reason} at byte {error.start})")
    return {"text": text.replace("\r\n", "\n")}
