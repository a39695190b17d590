"""The whole-source hook: rows -> rows, by one process or shared by all ranks.

Ranks write what the hook made of their share as JSON lines beside the cache folder; the process that
makes the cache reads all parts. So the ranks need a shared disk, and rows need to be JSON.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from controlllm.common.distributed import Ranks
from controlllm.common.errors import ControlLLMError, DataError
from controlllm.common.files import atomic_file
from controlllm.data.encode import RowEncoder
from controlllm.data.hooks import POSTPROCESS, PostprocessContext
from controlllm.data.sources import Located

__all__ = ["hooked_rows", "share_hooked_rows"]


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
    given = (row for _, row in encoder.choose(rows))
    made = 0
    try:
        for row in POSTPROCESS.get(name).function(given, context):
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


def share_hooked_rows(
    encoder: RowEncoder, rows: Iterable[Located], folder: Path, model: Any, ranks: Ranks
) -> Iterator[Located] | None:
    """Let each rank run the hook over its share. Collective.

    Args:
        encoder: as `hooked_rows`; its counts are then those of all ranks.
        rows: all rows of the source.
        folder: the cache folder that will be made of the result.
        model: what the hook may ask for.
        ranks: who shares the work.

    Returns:
        The rows of all ranks, or None where one process has to do all of it.

    Raises:
        DataError: on all ranks, if the hook fails on one of them.
    """
    if ranks.world_size == 1 or not POSTPROCESS.get(str(encoder.source.postprocess)).sharded:
        return None
    parts = folder.with_name(f"{folder.name}.parts")
    error: Exception | None = None
    try:
        share = islice(iter(rows), ranks.rank, None, ranks.world_size)
        with atomic_file(parts / f"{ranks.rank}-of-{ranks.world_size}.jsonl") as file:
            with file.open("w", encoding="utf-8") as out:
                for place, row in hooked_rows(encoder, share, model):
                    out.write(_as_json(row, place) + "\n")
    except ControlLLMError as failure:
        error = failure
    ranks.agree(error)
    for other, stats in enumerate(ranks.gather(encoder.stats)):
        if other != ranks.rank:
            encoder.stats.add(stats)
    return _parts(parts, ranks.world_size)


def _parts(folder: Path, count: int) -> Iterator[Located]:
    for rank in range(count):
        path = folder / f"{rank}-of-{count}.jsonl"
        if not path.is_file():
            raise DataError(
                f"{path}, which rank {rank} has written, is not to be seen here; `cache_dir` must "
                "lie on a disk that all ranks share."
            )
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                yield f"row {number} of {path}", json.loads(line)
    shutil.rmtree(folder, ignore_errors=True)


def _as_json(row: Any, place: str) -> str:
    try:
        return json.dumps(row, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{place} is no JSON, which ranks need to share it: {error}.") from None
