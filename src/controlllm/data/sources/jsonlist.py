"""JSON files that hold a list of rows, or an object that holds exactly one such list."""

from collections.abc import Iterator, Sequence
from typing import Any

from controlllm.common.errors import DataError
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.blocks import Blocks, Located
from controlllm.data.sources.combine import Chained
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.filewise import FileBlocks
from controlllm.data.sources.jsontext import JsonText
from controlllm.data.sources.lines import LineBlocks, check_row, parse_json, too_long
from controlllm.data.sources.registry import READERS, register_blocks
from controlllm.data.sources.trouble import reading
from controlllm.data.sources.weight import weight

__all__ = ["json_blocks", "read_json"]


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
    """The keys of an object that hold lists of objects.

    Args:
        text: where an object comes next.
        until: the key before whose list to stop.
    """
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
