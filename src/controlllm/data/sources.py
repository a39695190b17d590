"""Step 1: a source -> its rows, each with the place it came from (`file:line`)."""

import csv
import glob
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from controlllm.common.errors import DataError
from controlllm.common.registry import Registry
from controlllm.data.config import SourceConfig

__all__ = ["READERS", "Located", "read_rows"]

Located: TypeAlias = tuple[str, Any]
"""(place, row): the place is for messages. A row that cannot be read is given as the `DataError`
that says why, so that reading can go on behind it."""

READERS: Registry[Callable[[Path, SourceConfig], Iterator[Located]]] = Registry("file_type")
"""Readers of one local file by type."""

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
COMPRESSED = (".gz", ".zst")


def read_rows(source: SourceConfig) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """Read a source row by row, in a fixed order.

    Yields:
        (place, row): the place is `file:line` or `file, row n`, the row maps columns to values. A
            single row that
        cannot be read is given as a `DataError`; the caller raises or counts it.

    Raises:
        DataError: nothing is there, or a file is empty, cut off or malformed as a whole; says
            where.
    """
    rows = itertools.islice(_located(source), source.max_rows)
    empty = True
    for place, row in rows:
        empty = False
        if isinstance(row, dict | DataError):
            yield place, row
        else:
            yield (
                place,
                DataError(f"a row must map columns to values; this is a {type(row).__name__}"),
            )
    if empty:
        raise DataError(f"{source.path} holds no rows.")


def _located(source: SourceConfig) -> Iterator[Located]:
    if _is_saved_dataset(Path(source.path).expanduser()):
        yield from _read_dataset(source, saved=True)
    elif files := _find_files(source):
        for path, file_type in files:
            yield from _read_file(path, file_type, source)
    else:
        yield from _read_dataset(source, saved=False)


def _is_saved_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _find_files(source: SourceConfig) -> list[tuple[Path, str]]:
    """The local files of a source with their types, sorted; none if it can only be a Hub name."""
    path = Path(source.path).expanduser()
    if path.is_file():
        return [(path, _file_type(path, source))]
    if path.is_dir():
        return _files_of_folder(path, source)
    if any(character in source.path for character in "*?["):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        if files := [(file, _file_type(file, source)) for file in found if file.is_file()]:
            return files
        raise DataError(f"no file matches {source.path!r}.")
    if _may_be_hub_name(source.path):
        return []
    raise DataError(f"{source.path!r} does not exist; give a file, folder, glob or Hub name.")


def _files_of_folder(folder: Path, source: SourceConfig) -> list[tuple[Path, str]]:
    """All files of one type below a folder; a mixture is refused, since a guess would lose data."""
    files = [
        (path, kind)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (kind := ENDINGS.get(_ending(path)))
        and source.file_type in (None, kind)
    ]
    kinds = sorted({kind for _, kind in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder} holds files of types {kinds}; choose one with `file_type`, or give a glob."
        )
    if not files:
        raise DataError(
            f"{folder} holds no file that ends in {', '.join(ENDINGS)} (or these + .gz, .zst)."
        )
    return files


def _may_be_hub_name(path: str) -> bool:
    shape = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path)
    return bool(shape) and _ending(Path(path)) not in ENDINGS


def _ending(path: Path) -> str:
    """The ending that tells the type: `.jsonl` of `a.jsonl.gz`."""
    return Path(path.stem).suffix.lower() if path.suffix in COMPRESSED else path.suffix.lower()


def _file_type(path: Path, source: SourceConfig) -> str:
    kind = source.file_type or ENDINGS.get(_ending(path))
    if kind is None:
        raise DataError(f"{path}: the ending {path.suffix!r} tells no type; set `file_type`.")
    return kind


def _read_file(path: Path, file_type: str, source: SourceConfig) -> Iterator[Located]:
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    try:
        yield from READERS.get(file_type)(path, source)
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} cannot be read to its end ({error}); is it complete?") from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".zst":
        import pyarrow as pa

        # Arrow's stream knows no lines; the buffer around it does.
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not valid UTF-8 ({error.reason} at byte {error.start})") from None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON ({error})") from None
    except RecursionError:
        raise DataError("JSON nested too deeply") from None


def _read_text(path: Path) -> str:
    with _open(path) as file:
        try:
            return _decode(file.read())
        except DataError as error:
            raise DataError(f"{path}: {error}.") from None


@READERS.register("jsonl")
def _read_jsonl(path: Path, _: SourceConfig) -> Iterator[Located]:
    """One JSON object per line; lines of white space only are no rows."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", _row_or_error(line)


def _row_or_error(line: bytes) -> Any:
    try:
        return _parse(_decode(line))
    except DataError as error:
        return error


@READERS.register("json")
def _read_json(path: Path, source: SourceConfig) -> Iterator[Located]:
    """A list of objects, an object that holds exactly one such list, or JSON lines after all."""
    text = _read_text(path)
    first, _, rest = text.strip().partition("\n")
    if first.endswith("}") and rest.lstrip().startswith("{"):
        yield from _read_jsonl(path, source)
        return
    try:
        value = _parse(text)
    except DataError as error:
        raise DataError(f"{path}: {error}.") from None
    for number, row in enumerate(_rows_of_json(value, path)):
        yield f"{path}, row {number}", row


def _rows_of_json(value: Any, path: Path) -> list[Any]:
    if isinstance(value, list):
        return value
    lists = (
        [item for item in value.values() if isinstance(item, list)]
        if isinstance(value, dict)
        else []
    )
    rows = [item for item in lists if item and isinstance(item[0], dict)]
    if len(rows) == 1:
        return rows[0]
    # A single row in JSON-lines spelling is an object as well.
    if isinstance(value, dict):
        return [value]
    raise DataError(f"{path}: a list of rows is expected, not {type(value).__name__}.")


@READERS.register("parquet")
def _read_parquet(path: Path, _: SourceConfig) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except pa.ArrowException as error:
        raise DataError(f"{path}: broken Parquet after row {number} ({error}).") from error


@READERS.register("csv")
def _read_csv(path: Path, _: SourceConfig) -> Iterator[Located]:
    """A header line, then rows; `.tsv` files are parted by tabs."""
    delimiter = "\t" if _ending(path) == ".tsv" else ","
    reader = csv.DictReader(
        io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True
    )
    csv.field_size_limit(2**31 - 1)
    try:
        for row in reader:
            whole = None not in row and None not in row.values()
            error = DataError("the row has not as many fields as the header")
            yield f"{path}:{reader.line_num}", row if whole else error
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error}).") from None


@READERS.register("text")
def _read_plain(path: Path, source: SourceConfig) -> Iterator[Located]:
    text = _read_text(path).replace("\r\n", "\n")
    if source.text_unit == "file":
        yield str(path), {"text": text}
        return
    number = 1
    border = r"(\n(?:[ \t]*\n)+)" if source.text_unit == "paragraph" else r"(\n)"
    for part in re.split(border, text):
        if part.strip():
            yield f"{path}:{number}", {"text": part.strip("\n")}
        number += part.count("\n")


def _read_dataset(source: SourceConfig, saved: bool) -> Iterator[Located]:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{source.path} needs the package `datasets`: pip install datasets"
        ) from None
    try:
        if saved:
            data = datasets.load_from_disk(str(Path(source.path).expanduser()))
        else:
            data = datasets.load_dataset(source.path, source.subset, split=source.split)
    # The library raises whatever its many back ends raise; each means that the source cannot be
    # had.
    except Exception as error:
        raise DataError(
            f"{source.path!r} is no local file, and as a Hub name it cannot be loaded ({error})."
            if not saved
            else f"{source.path!r} cannot be loaded from disk ({error})."
        ) from error
    if isinstance(data, dict):
        if source.split not in data:
            raise DataError(f"{source.path}: no split {source.split!r}; it has {sorted(data)}.")
        data = data[source.split]
    for number, row in enumerate(data):
        yield f"{source.path}[{source.split}], row {number}", row
