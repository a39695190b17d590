"""Splits and slices as `datasets` spells them: `train`, `train[:10%]`, `train[100:200]+test`."""

import re
from collections.abc import Mapping

from controlllm.common.errors import ConfigError, DataError

__all__ = ["parse_split"]

_PART = re.compile(r"(?P<name>[\w.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def parse_split(split: str, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
    """The splits that a spelling names, and which rows of each.

    Args:
        split: names with slices by rows or percent (rounded to the nearest row), joined by `+`.
        sizes: the rows of each split that there is.

    Raises:
        ConfigError: the spelling is wrong.
        DataError: a split is not there.
    """
    found = []
    for text in split.split("+"):
        match = _PART.fullmatch(text.strip())
        if match is None:
            raise ConfigError(
                f"split={split!r} is not understood; write a name, or slices such as "
                "`train[:10%]` or `train[100:200]+test`."
            )
        name = match["name"]
        if name not in sizes:
            raise DataError(f"no split {name!r}; it has {sorted(sizes)}.")
        size = sizes[name]
        bounds = slice(_row(match["start"], size), _row(match["stop"], size))
        found.append((name, range(size)[bounds]))
    return found


def _row(text: str | None, size: int) -> int | None:
    if text is None:
        return None
    if text.endswith("%"):
        return round(size * int(text[:-1]) / 100)
    return int(text)
