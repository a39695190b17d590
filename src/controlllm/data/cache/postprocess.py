"""The whole-source hook: rows -> rows, by one process or shared by all ranks.

Ranks write what the hook made of their share beside the cache folder; the rank that makes the cache
reads all parts. So the ranks need a shared disk.
"""

import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from controlllm.common.distributed import Ranks
from controlllm.common.errors import ControlLLMError, DataError
from controlllm.common.storage.files import atomic_file
from controlllm.data.cache.rowcodec import decode_row, encode_row
from controlllm.data.config.hooks import POSTPROCESS, PostprocessContext
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import RowEncoder
from controlllm.data.sources import Located

__all__ = ["hooked_rows", "is_shared", "share_hooked_rows"]


def is_shared(source: SourceConfig, ranks: Ranks) -> bool:
    """Whether several ranks are to share the work of a source's hook."""
    if not source.postprocess or ranks.world_size == 1:
        return False
    return POSTPROCESS.get(source.postprocess).sharded


def hooked_rows(encoder: RowEncoder, rows: Iterable[Located], model: Any) -> Iterator[Located]:
    """The rows that the source's hook makes of those that take part.

    Args:
        encoder: chooses rows before the hook sees them; counts them.
        rows: rows of the source.
        model: what the hook may ask for.

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

    Args:
        encoder: as `hooked_rows`; its counts are then those of all ranks.
        rows: all rows of the source.
        parts: folder for what each rank makes; removed once the rows were read.
        model: what the hook may ask for.
        ranks: who shares the work.

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
                f"{path}, which rank {rank} has written, is not to be seen here; `cache_dir` must "
                "lie on a disk that all ranks share."
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
