"""What sources are called: no name means two of them."""

import re
from collections.abc import Container, Mapping, Sequence
from itertools import count

from controlllm.common.errors import ConfigError
from controlllm.data.config.source_config import SourceConfig

__all__ = ["check_names"]


def check_names(groups: Mapping[str, Sequence[SourceConfig]]) -> None:
    """Check that no two sources have one name: stages, metrics and tables go by names.

    Args:
        groups: the sources of `train`, `replay`, ... that meet each other.

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
