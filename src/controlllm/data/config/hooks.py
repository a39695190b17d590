"""Hooks that a user's own code joins by name: `postprocess` for a whole source, and collators.

The third hook, preprocess, is a format: a row -> a document (`formats`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.common.registry import Registry
from controlllm.data.config.source_config import SourceConfig

__all__ = [
    "COLLATORS",
    "POSTPROCESS",
    "PostprocessContext",
    "register_collator",
    "register_postprocess",
]

Collator: TypeAlias = Callable[[Sequence[Sequence[Any]], int, int], dict[str, Any]]
"""(groups, max_length, pad_id) -> batch. A group is a packed slot, or a padded row alone; its
members are (example, origin). The keys of a batch are those of
`loader.collate`."""

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
            DataError: the hook did not say that it uses one, or the source is prepared where there
                is none (`controlllm data`).
        """
        name = self.source.postprocess
        if name is not None and not POSTPROCESS.get(name).uses_model:
            raise DataError(
                f"source {self.source.name!r}: its postprocess hook asks for the model; register "
                f"it as `register_postprocess({name!r}, uses_model=True)`, so that another model "
                "never finds this one's rows in the cache."
            )
        if self.loaded_model is None:
            raise DataError(
                f"source {self.source.name!r}: its postprocess hook {name!r} "
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
    uses_model: bool = False
    """Whether it asks for the model, on whose content its cache then depends."""


POSTPROCESS: Registry[Postprocess] = Registry("postprocess")
"""Hooks by name."""


def register_postprocess(
    name: str, sharded: bool = True, uses_model: bool = False
) -> Callable[[Callable[[Rows, PostprocessContext], Rows]], Callable[..., Rows]]:
    """Decorate a function `(rows, context) -> rows` that rewrites a whole source.

    Its result is tokenized and cached by content, the hook's own code included.

    Args:
        name: what `postprocess` of a source says.
        sharded: whether several ranks may share the rows; False where rows belong together.
        uses_model: whether it asks for `context.model`.

    Raises:
        ConfigError: the name is taken.
    """

    def keep(function: Callable[[Rows, PostprocessContext], Rows]) -> Callable[..., Rows]:
        POSTPROCESS.register(name)(Postprocess(function, sharded, uses_model))
        return function

    return keep
