"""Folders that `save_to_disk` of `datasets` wrote, read as the Arrow files they are."""

import json
import posixpath
from dataclasses import replace
from typing import Any

from controlllm.common.errors import DataError
from controlllm.common.storage.remote import is_remote, shown
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.arrow import arrow_chunks
from controlllm.data.sources.chunks import Chunks
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.finding import SAVED_MARKS, Folder, find_files
from controlllm.data.sources.registry import register_source, require_read
from controlllm.data.sources.splits import choose_split

__all__ = ["is_saved", "open_saved", "saved_chunks"]

_MOST_BYTES = 64 * 2**20
"""Of a JSON file that describes a data set."""


@register_source("saved", reads=("split", "storage_options"))
def open_saved(source: SourceConfig, timeout: float) -> Chunks:
    """Chunks of a saved data set: rows where it lies on this machine, else one per file.

    Raises:
        DataError: it is no such folder, is not complete, or has no such split.
    """
    folder = find_files(source, timeout)
    if not isinstance(folder, Folder) or not is_saved(folder):
        raise DataError(
            f"{shown(source.path)} is no folder that `save_to_disk` wrote (no "
            f"{' or '.join(SAVED_MARKS)} in it)."
        )
    return saved_chunks(folder, source)


def is_saved(folder: Folder) -> bool:
    """Whether a folder is a saved data set."""
    names = {file.path for file in folder.files}
    return any(folder.join(name) in names for name in SAVED_MARKS)


def saved_chunks(folder: Folder, source: SourceConfig) -> Chunks:
    """Chunks of the split that `source.split` names.

    Raises:
        DataError: the folder is not complete, or has no such split.
    """
    reads = {"split", "storage_options"} if is_remote(source.path) else {"split"}
    require_read(source, reads, "a folder of `save_to_disk`")
    by_path = {file.path: file for file in folder.files}
    if (index := by_path.get(folder.join("dataset_dict.json"))) is not None:
        places = {str(name): folder.join(str(name)) for name in _field(index, "splits", list)}
    else:
        name = _field(by_path[folder.join("state.json")], "_split", str | None)
        # One that was made in memory has no name.
        places = {name or source.split.partition("[")[0]: folder.path}
    return choose_split(
        lambda name: _split(by_path, places[name], source),
        places,
        source.split,
        shown(source.path),
    )


def _split(by_path: dict[str, SourceFile], place: str, source: SourceConfig) -> Chunks:
    state = by_path.get(posixpath.join(place, "state.json"))
    if state is None:
        raise DataError(f"{place}: state.json is missing; save the data set again, to its end.")
    entries = _field(state, "_data_files", list)
    names = [entry.get("filename") if isinstance(entry, dict) else entry for entry in entries]
    paths = [posixpath.join(place, str(name)) for name in names]
    if missing := [path for path in paths if path not in by_path]:
        raise DataError(f"{missing[0]} is missing; save or copy the data set again, to its end.")
    return arrow_chunks([replace(by_path[path], file_type="arrow") for path in paths], source)


def _field(file: SourceFile, name: str, kind: Any) -> Any:
    """What a JSON file of a saved data set says under a name."""
    content = file.load(_MOST_BYTES).content or b""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(values, dict) or not isinstance(values.get(name), kind):
        raise DataError(f"{file}: {name!r} is missing or damaged; save the data set again.")
    return values.get(name)
