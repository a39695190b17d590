"""Hooks that a user's own code joins by name: `postprocess` for a whole source, and collators.

The third hook, preprocess, is a format: a row -> a document (`formats`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.common.registry import Registry
from controlllm.data.config import SourceConfig

__all__ = [
    "COLLATORS",
    "POSTPROCESS",
    "Collator",
    "Postprocess",
    "PostprocessContext",
    "register_collator",
    "register_postprocess",
]

Collator: TypeAlias = Callable[[Sequence[Sequence[Any]], int, int], dict[str, Any]]
"""(groups, max_length, pad_id) -> batch. A group is a packed slot, or a padded row alone; its members
are (example, origin). The keys of a batch are those of `batches`."""

COLLATORS: Registry[Collator] = Registry("collator")
"""Collators by name."""

register_collator = COLLATORS.register


@dataclass(frozen=True)
class PostprocessContext:
    """What a postprocess hook may ask for."""

    source: SourceConfig
    """The source whose rows it gets."""

    tokenizer: PreTrainedTokenizerBase
    """The tokenizer of the run."""

    loaded_model: Any = None
    """The model of the run before it is expanded, if there is one; `model` is the careful way."""

    @property
    def model(self) -> Any:
        """The model of the run.

        Raises:
            DataError: the source is prepared where there is no model (`controlllm data`).
        """
        if self.loaded_model is None:
            raise DataError(
                f"source {self.source.name!r}: its postprocess hook {self.source.postprocess!r} "
                "needs the model; it runs at the start of `controlllm train`, not here."
            )
        return self.loaded_model


Rows: TypeAlias = Iterator[Mapping[str, Any]]


@dataclass(frozen=True)
class Postprocess:
    """A hook over all rows of a source."""

    function: Callable[[Rows, PostprocessContext], Rows]
    """Rows -> rows; may drop, change, join or write rows."""

    sharded: bool
    """Whether each rank may be given a share of the rows, or one process must see them all."""


POSTPROCESS: Registry[Postprocess] = Registry("postprocess")
"""Hooks by name."""


def register_postprocess(
    name: str, sharded: bool = True
) -> Callable[[Callable[[Rows, PostprocessContext], Rows]], Callable[..., Rows]]:
    """Decorate a function `(rows, context) -> rows` that rewrites a whole source.

    Its result is tokenized and cached by content, the hook's own code included.

    Args:
        name: what `postprocess` of a source says.
        sharded: whether several ranks may share the rows; False where rows belong together.
    """

    def keep(function: Callable[[Rows, PostprocessContext], Rows]) -> Callable[..., Rows]:
        POSTPROCESS.register(name)(Postprocess(function, sharded))
        return function

    return keep
