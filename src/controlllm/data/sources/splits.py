"""Splits of a folder: which files are `train`, `test`, ..., told by their names as on the Hub.

```
data/train_sft-00000-of-00004.parquet     train_sft     shards in `data/`, whatever the split's name
test/a.jsonl, data/dev/b.jsonl            test, validation
train.jsonl, gsm8k_test-2.jsonl           train, test
a.jsonl, b.jsonl                          train         nothing is named after a split
```
"""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from controlllm.common.errors import DataError
from controlllm.data.sources.blocks import Blocks
from controlllm.data.sources.combine import Chained, RowRange
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.slices import parse_split, split_names

__all__ = ["choose_split", "files_by_split"]

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

    Args:
        folder: its path on its file system.
        files: all of its data files, of one type.

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
    open_split: Callable[[str], Blocks], names: Collection[str], split: str, where: str
) -> Blocks:
    """The split, or the slices of splits, that a spelling names; others are not opened.

    Args:
        open_split: opens one by its name.
        names: all that there are.
        split: as for `slices.parse_split`.
        where: what has these splits, for messages.

    Raises:
        ConfigError: the spelling is wrong.
        DataError: a split is not there or empty, or what is to be cut cannot be.
    """
    try:
        wanted = split_names(split, names)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if left := sorted(set(names) - set(wanted)):
        log.info("%s: split=%r is read; %s are left out.", where, split, left)
    opened = {name: open_split(name) for name in wanted}
    if split in opened:
        return opened[split]
    if not all(blocks.by_row for blocks in opened.values()):
        raise DataError(
            f"{where}: split={split!r} cuts a data set whose rows cannot be read one by one here; "
            "take whole splits, or `max_rows`."
        )
    sizes = {name: len(blocks) for name, blocks in opened.items()}
    parts: list[Blocks] = [
        RowRange(opened[name], rows) for name, rows in parse_split(split, sizes) if len(rows)
    ]
    if not parts:
        raise DataError(f"{where}: split={split!r} holds no rows.")
    return Chained(parts) if len(parts) > 1 else parts[0]
