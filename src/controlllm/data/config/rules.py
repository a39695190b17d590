"""What goes together in a data section: names, and fields that another one switches off."""

import re
from collections.abc import Container, Mapping, Sequence
from itertools import count
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.settings import Rule
from controlllm.data.config.source_config import SourceConfig

__all__ = ["DATA_RULES", "HELD_OUT_RULES", "check_names"]


def _shares(data: Any) -> bool:
    """Whether several sources share the mix; a section without train sources is not judged."""
    return not data.train or max(len(data.train), len(data.replay)) > 1


_OF_PACKING = "it says how packed slots are filled; set packing=true, or leave it out"
_OF_PADDING = "it shapes padded batches; set packing=false, or leave it out"
_OF_SHARES = "there is one source, which has the whole share; leave it out"

DATA_RULES = (
    Rule("packing_strategy", lambda data: data.packing, _OF_PACKING),
    Rule("packing_lookahead", lambda data: data.packing, _OF_PACKING),
    Rule("group_by_length", lambda data: not data.packing, _OF_PADDING),
    Rule("max_tokens_per_batch", lambda data: not data.packing, _OF_PADDING),
    Rule(
        "group_by_length",
        lambda data: data.max_tokens_per_batch is None,
        "batches of max_tokens_per_batch are of like length already; leave it out",
    ),
    Rule(
        "prefetch_factor",
        lambda data: data.num_workers > 0,
        "only worker processes read it; set num_workers, or leave it out",
    ),
    Rule(
        "shuffle_buffer",
        lambda data: data.shuffle,
        "rows come as they lie with shuffle=false; leave it out",
    ),
    Rule("temperature", _shares, _OF_SHARES),
    Rule("stages", _shares, _OF_SHARES),
)
"""Of the data section as a whole."""

_ONCE = "each row of a held-out set is measured once, in order; leave it out"

HELD_OUT_RULES = (
    Rule("weight", lambda source: False, _ONCE),
    Rule("epochs", lambda source: False, _ONCE),
    Rule("sample", lambda source: source.sample <= 1, _ONCE + ", or keep it below 1"),
    Rule("difficulty", lambda source: False, _ONCE),
    Rule("phases", lambda source: False, _ONCE),
)
"""Of sources of `learn` and `retain`."""


def check_names(groups: Mapping[str, Sequence[SourceConfig]]) -> None:
    """Check that no two sources have one name: stages, metrics and tables go by names.

    Raises:
        ConfigError: with both sources, and a name to give to one of them.
    """
    known: dict[str, str] = {}
    for group, sources in groups.items():
        for source in sources:
            name = str(source.name)
            if name in known:
                raise ConfigError(
                    f"{name!r} is the name of two sources: {known[name]}, and "
                    f"{_described(group, source)}. Stages and metrics go by names: set `name` of "
                    f"one of them, e.g. `name: {_another(source, known)}`."
                )
            known[name] = _described(group, source)


def _described(group: str, source: SourceConfig) -> str:
    """A source in the words of its config, without its name."""
    more = {key: getattr(source, key) for key in ("subset", "part") if getattr(source, key)}
    if source.split != "train":
        more["split"] = source.split
    return f"data.{group} {source.path!r}" + "".join(f" {key}={v!r}" for key, v in more.items())


def _another(source: SourceConfig, taken: Container[str]) -> str:
    """A name that tells the source from one that is called as it is."""
    folder = source.path.rstrip("/").rpartition("/")[0].rpartition("/")[2]
    split = source.split if source.split != "train" else None
    for more in (source.subset, split, re.sub(r"[^\w-]+", "", folder)):
        if more and (name := f"{source.name}-{more}") not in taken:
            return name
    return next(name for i in count(2) if (name := f"{source.name}-{i}") not in taken)
