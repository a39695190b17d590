"""The whole-source hook: rows -> rows, by one process or shared by all ranks (see `prepare`)."""

from collections.abc import Iterable, Iterator
from typing import Any

from controlllm.common.distributed import Ranks
from controlllm.common.errors import ControlLLMError, DataError
from controlllm.data.config.hooks import POSTPROCESS, PostprocessContext
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.examples.encode import RowEncoder
from controlllm.data.sources import Located

__all__ = ["hooked_rows", "is_shared"]


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
