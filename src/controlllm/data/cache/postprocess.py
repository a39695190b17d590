"""The whole-source hook: rows -> rows, by one process or shared by all ranks.

Ranks write what the hook made of their share beside the cache folder; the rank that makes the cache
reads all parts. So the ranks need a shared disk.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from controlllm.common.distributed import Ranks
from controlllm.common.errors import ControlLLMError, DataError
from controlllm.common.storage.files import atomic_file
from controlllm.data.config.hooks import POSTPROCESS, PostprocessContext
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import RowEncoder
from controlllm.data.sources import Located

__all__ = ["decode_row", "encode_row", "hooked_rows", "is_shared", "share_hooked_rows"]

_PLAIN = (type(None), bool, int, float, str)

_WRITE: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bytes: ("bytes", bytes.hex),
    tuple: ("tuple", lambda value: [_written(item) for item in value]),
    datetime: ("datetime", datetime.isoformat),
    date: ("date", date.isoformat),
    time: ("time", time.isoformat),
    timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: ("decimal", str),
    UUID: ("uuid", str),
}
"""Type -> its key, and its value as JSON takes it."""

_READ: dict[str, Callable[[Any], Any]] = {
    "bytes": bytes.fromhex,
    "tuple": lambda value: tuple(_read(item) for item in value),
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda value: timedelta(*value),
    "decimal": Decimal,
    "uuid": UUID,
    "dict": lambda value: {_read(key): _read(item) for key, item in value},
    "array": lambda value: np.array(value[1], dtype=np.dtype(value[0])),
    "number": lambda value: np.dtype(value[0]).type(value[1]),
}
"""Key -> what makes the value again."""


def encode_row(row: Any) -> str:
    """A row as one line of JSON.

    Raises:
        DataError: it holds a value that is not plain; says of which type.
    """
    return json.dumps(_written(row))


def decode_row(line: str | bytes) -> Any:
    """The row that `encode_row` wrote.

    Raises:
        ValueError, TypeError or KeyError: it did not write this line.
    """
    return _read(json.loads(line))


def _written(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return [_written(item) for item in value]
    if isinstance(value, dict):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _written(item) for key, item in value.items()}
        return {"$dict": [[_written(key), _written(item)] for key, item in value.items()]}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufU":
        name = "$array" if isinstance(value, np.ndarray) else "$number"
        return {name: [value.dtype.str, value.tolist()]}
    if kind not in _WRITE:
        raise DataError(f"a {kind.__name__} is no plain value (text, number, date, list, ...)")
    name, write = _WRITE[kind]
    return {f"${name}": write(value)}


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (key := next(iter(value))).startswith("$"):
        return _READ[key[1:]](value[key])
    return {key: _read(item) for key, item in value.items()}


def is_shared(source: SourceConfig, ranks: Ranks) -> bool:
    """Whether several ranks are to share the work of a source's hook."""
    if not source.postprocess or ranks.world_size == 1:
        return False
    return POSTPROCESS.get(source.postprocess).sharded


def hooked_rows(encoder: RowEncoder, rows: Iterable[Located], model: Any) -> Iterator[Located]:
    """The rows that the source's hook makes of those that take part.

    Raises:
        DataError: the hook fails, or a row cannot be used.
    """
    name = str(encoder.source.postprocess)
    context = PostprocessContext(encoder.source, encoder.renderer.tokenizer, model)
    taken = made = 0

    def given() -> Iterator[Any]:
        nonlocal taken
        for _, row in encoder.choose(rows):
            taken += 1
            yield row

    try:
        for row in POSTPROCESS.get(name).function(given(), context):
            yield f"row {made} of postprocess {name!r}", row
            made += 1
    except ControlLLMError:
        raise
    # Whatever a user's own function raises; nothing after it can be trusted.
    except Exception as error:
        raise DataError(
            f"source {encoder.source.name!r}: the postprocess hook {name!r} fails after {made} "
            f"rows: {error!r}."
        ) from error
    encoder.stats.filtered += max(taken - made, 0)


def share_hooked_rows(
    encoder: RowEncoder, rows: Iterable[Located], parts: Path, model: Any, ranks: Ranks
) -> Iterator[Located]:
    """Let each rank run the hook over its share. Collective.

    Returns:
        The rows of all ranks, in the order of ranks.

    Raises:
        DataError: on all ranks, if the hook fails on one of them.
    """
    error: Exception | None = None
    try:
        share = islice(iter(rows), ranks.rank, None, ranks.world_size)
        _write_part(parts / str(ranks.rank), hooked_rows(encoder, share, model))
    except Exception as failure:  # Told to all ranks, so that none waits for this one.
        error = failure
    ranks.agree(error)
    for other, stats in enumerate(ranks.gather(encoder.stats)):
        if other != ranks.rank:
            encoder.stats.add(stats)
    return _read_parts(parts, ranks.world_size)


def _write_part(path: Path, rows: Iterable[Located]) -> None:
    """One row a line, so spelt that it is the same whether it was shared or not."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for place, row in rows:
            try:
                file.write(encode_row(row) + "\n")
            except DataError as error:
                raise DataError(f"{place} cannot be written for other ranks: {error}.") from None


def _read_parts(folder: Path, count: int) -> Iterator[Located]:
    for rank in range(count):
        path = folder / str(rank)
        if not path.is_file():
            raise DataError(
                f"rank {rank} wrote {path}, but this rank does not see it; put `cache_dir` on a "
                "disk that all ranks share."
            )
        with path.open("rb") as file:
            for number, line in enumerate(file):
                place = f"row {number} of rank {rank}"
                try:
                    row = decode_row(line)
                except (ValueError, TypeError, KeyError) as error:
                    raise DataError(f"{path}: {place} is damaged ({error}); run again.") from error
                yield place, row
    shutil.rmtree(folder, ignore_errors=True)
