"""Splits and slices as `datasets` spells them: `train`, `train[:10%]`, `train[100:200]+test`."""

import re
from collections.abc import Iterable, Mapping

from controlllm.common.errors import ConfigError, DataError

__all__ = ["parse_split", "split_names"]

_PART = re.compile(r"(?P<name>[\w.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def split_names(split: str, known: Iterable[str]) -> list[str]:
    """The splits that a spelling names.

    Args:
        split: as for `parse_split`.
        known: the splits that there are.

    Raises:
        ConfigError: the spelling is wrong.
        DataError: a split is not there.
    """
    names = [match["name"] for match in _parts(split)]
    if missing := [name for name in names if name not in known]:
        raise DataError(f"no split {missing[0]!r}; it has {sorted(known)}.")
    return names


def parse_split(split: str, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
    """The splits that a spelling names, and which rows of each.

    Args:
        split: names with slices by rows or percent (rounded to the nearest row), joined by `+`.
        sizes: the rows of each split.

    Raises:
        ConfigError: the spelling is wrong.
        DataError: a split is not there.
    """
    split_names(split, sizes)
    found = []
    for match in _parts(split):
        size = sizes[match["name"]]
        bounds = slice(_row(match["start"], size), _row(match["stop"], size))
        found.append((match["name"], range(size)[bounds]))
    return found


def _parts(split: str) -> list[re.Match[str]]:
    found = [_PART.fullmatch(text.strip()) for text in split.split("+")]
    parts = [match for match in found if match is not None]
    mixed = [m for m in parts if len({b.endswith("%") for b in (m["start"], m["stop"]) if b}) > 1]
    if len(parts) < len(found) or mixed:
        raise ConfigError(
            f"split={split!r} is not understood; write a name, or slices by rows or by percent "
            "such as `train[:10%]` or `train[100:200]+test`."
        )
    return parts


def _row(text: str | None, size: int) -> int | None:
    if text is None:
        return None
    if text.endswith("%"):
        return round(size * int(text[:-1]) / 100)
    return int(text)
