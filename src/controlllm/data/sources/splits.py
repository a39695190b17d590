"""Splits of a folder, told by the names of its files as on the Hub.

```
data/train_sft-00000-of-00004.parquet     train_sft     shards in `data/`, whatever the split's name
test/a.jsonl, data/dev/b.jsonl            test, validation
train.jsonl, gsm8k_test-2.jsonl           train, test
a.jsonl, b.jsonl                          train         nothing is named after a split
```
Slices are spelt as in `datasets`: `train[:10%]`, `train[100:200]+test`.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from controlllm.common.errors import ConfigError, DataError
from controlllm.data.sources.chunks import Chunks, Part, chained
from controlllm.data.sources.files import SourceFile

__all__ = ["choose_split", "files_by_split", "parse_split"]

_PART = re.compile(r"(?P<name>[\w.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def parse_split(split: str, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
    """The splits that a spelling names, and which rows of each.

    Args:
        split: names with slices by rows or percent (rounded to the nearest row), joined by `+`.
        sizes: the rows of each split, all of which are there.

    Raises:
        ConfigError: the spelling is wrong.
    """
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
    if text is not None and text.endswith("%"):
        return round(size * int(text[:-1]) / 100)
    return None if text is None else int(text)


log = logging.getLogger(__name__)

_KEYWORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = re.compile(r"data/(?P<split>[\w.-]+?)-\d{5}-of-\d{5}[^/]*")
_WORDS = re.compile(r"[-._ 0-9]+")
_NAMED = 3


def files_by_split(folder: str, files: Sequence[SourceFile]) -> dict[str, list[SourceFile]]:
    """The files of each split of a folder.

    Raises:
        DataError: some files are named after splits and others are not.
    """
    names = [file.path.removeprefix(folder).lstrip("/") for file in files]
    splits = [_split_of(name) for name in names]
    # Texts have titles ("training.md"): single ones do not make a folder of texts one of splits.
    if None in splits and files[0].file_type == "text":
        splits = [_split_of(name.rpartition("/")[0] + "/") for name in names]
    found = defaultdict(list)
    for file, split in zip(files, splits, strict=True):
        found[split or "train"].append(file)
    if None in splits and any(splits):
        rest = [name for name, split in zip(names, splits, strict=True) if split is None]
        more = f" and {len(rest) - _NAMED} more" if len(rest) > _NAMED else ""
        raise DataError(
            f"{folder}: some files are named after the splits {sorted(set(filter(None, splits)))}, "
            f"others are not ({', '.join(rest[:_NAMED])}{more}); give the files as a glob."
        )
    return found


def _split_of(name: str) -> str | None:
    """The split that the path of a file below its folder tells, if it tells one."""
    if shard := _SHARD.fullmatch(name):
        return shard["split"]
    for part in name.lower().split("/"):
        told = {_KEYWORDS[word] for word in _WORDS.split(part) if word in _KEYWORDS}
        if len(told) == 1:
            return told.pop()
    return None


def choose_split(
    open_split: Callable[[str], Chunks], names: Collection[str], split: str, where: str
) -> Chunks:
    """The split, or the slices of splits, that a spelling names; others are not opened.

    Raises:
        ConfigError: the spelling is wrong.
        DataError: a split is not there or empty, or what is to be cut cannot be.
    """
    wanted = [match["name"] for match in _parts(split)]
    if missing := [name for name in wanted if name not in names]:
        raise DataError(f"{where}: no split {missing[0]!r}; it has {sorted(names)}.")
    if left := sorted(set(names) - set(wanted)):
        log.info("%s: split=%r is read; %s are left out.", where, split, left)
    opened = {name: open_split(name) for name in wanted}
    if split in opened:
        return opened[split]
    if not all(chunks.by_row for chunks in opened.values()):
        raise DataError(
            f"{where}: split={split!r} cuts a data set whose rows cannot be read one by one here; "
            "take whole splits, or `max_rows`."
        )
    sizes = {name: len(chunks) for name, chunks in opened.items()}
    parts: list[Chunks] = [
        Part(opened[name], rows) for name, rows in parse_split(split, sizes) if len(rows)
    ]
    if not parts:
        raise DataError(f"{where}: split={split!r} holds no rows.")
    return chained(parts)
