"""JSON files that hold a list of rows, or an object that holds exactly one such list."""

from collections.abc import Iterator, Sequence
from typing import Any

from controlllm.common.errors import DataError
from controlllm.data.config import SourceConfig
from controlllm.data.sources.blocks import Blocks, Located
from controlllm.data.sources.combine import Chained
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.filewise import FileBlocks
from controlllm.data.sources.lines import LineBlocks, check_row, parse_json, too_long
from controlllm.data.sources.registry import READERS, register_blocks
from controlllm.data.sources.trouble import reading
from controlllm.data.sources.weight import weight

__all__ = ["WHOLE_FILE_BYTES", "json_blocks", "read_json"]

WHOLE_FILE_BYTES = 2**30
"""The most that a file may hold, unpacked, if it can only be read as a whole."""

_ESCAPE = b"\\ud"


@register_blocks("json", ".json")
def json_blocks(files: Sequence[SourceFile], source: SourceConfig) -> Blocks:
    """Blocks of `.json` files; those that hold JSON lines after all are cut like them."""
    parts: list[Blocks] = []
    group: list[SourceFile] = []
    kinds = [_holds_lines(file, source) for file in files]
    for number, file in enumerate(files):
        group.append(file)
        if number + 1 == len(files) or kinds[number + 1] != kinds[number]:
            parts.append((LineBlocks if kinds[number] else FileBlocks)(group, source))
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
    """The rows of a list.

    Raises:
        DataError: the file is larger than `WHOLE_FILE_BYTES`, not JSON, or no list of rows.
    """
    with file.open() as opened:
        data = opened.read(WHOLE_FILE_BYTES + 1)
    if len(data) > WHOLE_FILE_BYTES:
        raise DataError(
            f"{file} holds more than {WHOLE_FILE_BYTES:,} bytes of JSON in one piece; write it as "
            "JSON lines, which are read row by row."
        )
    try:
        rows = _rows_of(parse_json(data))
    except DataError as error:
        raise DataError(f"{file}: {error}.") from None
    limit = source.max_row_bytes
    large = len(data) > limit
    spelling = _ESCAPE if _ESCAPE in data.lower() else b""
    for number, row in enumerate(rows):
        checked = check_row(row, spelling)
        if large and (length := weight(row)) > limit:
            checked = too_long(length, limit)
        yield f"{file}, row {number}", checked


def _rows_of(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise DataError(f"a list of rows is expected, not {type(value).__name__}")
    lists = [item for item in value.values() if isinstance(item, list)]
    rows = [item for item in lists if item and isinstance(item[0], dict)]
    # A single row in JSON-lines spelling is an object as well.
    return rows[0] if len(rows) == 1 else [value]
