"""Folders that `save_to_disk` of `datasets` wrote, read as the Arrow files they are."""

import json
import posixpath
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from controlllm.common.errors import DataError
from controlllm.common.remote import shown
from controlllm.data.config import SourceConfig
from controlllm.data.sources.arrow import arrow_blocks
from controlllm.data.sources.blocks import Blocks
from controlllm.data.sources.combine import Chained, RowRange
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.finding import SAVED_MARKS, Folder, list_folder
from controlllm.data.sources.registry import register_source
from controlllm.data.sources.slices import parse_split, split_names

__all__ = ["is_saved", "open_saved", "saved_blocks"]


@register_source("saved")
def open_saved(source: SourceConfig, timeout: float) -> Blocks:
    """Blocks of a saved data set: rows where it lies on this machine, else one per file.

    Raises:
        DataError: it is no such folder, is not complete, or has no such split.
    """
    folder = list_folder(source, timeout)
    if folder is None or not is_saved(folder):
        raise DataError(
            f"{shown(source.path)} is no folder that `save_to_disk` wrote (no "
            f"{' or '.join(SAVED_MARKS)} in it)."
        )
    return saved_blocks(folder, source)


def is_saved(folder: Folder) -> bool:
    """Whether a folder is a saved data set."""
    names = {file.path for file in folder.files}
    return any(folder.join(name) in names for name in SAVED_MARKS)


def saved_blocks(folder: Folder, source: SourceConfig) -> Blocks:
    """Blocks of the split that `source.split` names.

    Args:
        folder: all its files.
        source: which split, or slices of splits.

    Raises:
        DataError: the folder is not complete, or has no such split.
    """
    by_path = {file.path: file for file in folder.files}
    if (index := by_path.get(folder.join("dataset_dict.json"))) is not None:
        places = {name: folder.join(name) for name in _read_json(index)["splits"]}
    else:
        name = _read_json(by_path[folder.join("state.json")]).get("_split")
        # One that was made in memory has no name.
        places = {name or source.split.partition("[")[0]: folder.path}
    try:
        return _choose(lambda name: _split(by_path, places[name], source), places, source.split)
    except DataError as error:
        raise DataError(f"{shown(source.path)}: {error}") from None


def _choose(open_split: Callable[[str], Blocks], names: Iterable[str], split: str) -> Blocks:
    """The split, or the slices of splits, that a spelling names; others are not opened."""
    wanted = split_names(split, names)
    opened = {name: open_split(name) for name in wanted}
    if split in opened:
        return opened[split]
    if not all(blocks.by_row for blocks in opened.values()):
        raise DataError(
            f"split={split!r} cuts a data set whose rows cannot be read one by one here; take "
            "whole splits, or `max_rows`."
        )
    sizes = {name: len(blocks) for name, blocks in opened.items()}
    parts: list[Blocks] = [
        RowRange(opened[name], rows) for name, rows in parse_split(split, sizes) if len(rows)
    ]
    if not parts:
        raise DataError(f"split={split!r} holds no rows.")
    return Chained(parts) if len(parts) > 1 else parts[0]


def _split(by_path: dict[str, SourceFile], place: str, source: SourceConfig) -> Blocks:
    state = by_path.get(posixpath.join(place, "state.json"))
    if state is None:
        raise DataError(f"{place}: state.json is missing; was it saved to its end?")
    names = [entry["filename"] for entry in _read_json(state)["_data_files"]]
    paths = [posixpath.join(place, name) for name in names]
    if missing := [path for path in paths if path not in by_path]:
        raise DataError(f"{missing[0]} is missing; was it saved, or copied, to its end?")
    return arrow_blocks([replace(by_path[path], file_type="arrow") for path in paths], source)


def _read_json(file: SourceFile) -> Any:
    content = file.load().content or b""
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error}).") from None
