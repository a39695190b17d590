"""The path of a source -> its files, in a fixed order, each with its type.

A path is a file, a folder (all files below it of one type) or a glob, here or at any address.
"""

import contextlib
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from controlllm.common.errors import DataError
from controlllm.common.registry import check_choice
from controlllm.common.storage.remote import STAMPS, is_remote, open_filesystem, shown
from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.files import SourceFile, reading
from controlllm.data.sources.registry import FILE_CHUNKS, known_endings, type_of_ending

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["SAVED_MARKS", "Folder", "find_files", "is_glob", "local_path", "with_types"]

SAVED_MARKS = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` writes into its folders."""


@dataclass(frozen=True)
class Folder:
    """A folder with all files below it, of whatever type, sorted by path."""

    path: str
    files: list[SourceFile]


def find_files(source: SourceConfig, timeout: float) -> Folder | list[SourceFile]:
    """What a path is: a folder, or the files that it names or matches, sorted.

    Raises:
        DataError: nothing is there or may be read.
    """
    with reading(source.path):
        found = _list(source, timeout)
    if not isinstance(found, Folder) and not found:
        raise DataError(f"no file matches {shown(source.path)!r}.")
    return found


def with_types(found: Folder | list[SourceFile], source: SourceConfig) -> list[SourceFile]:
    """The files that are data, each with its type.

    Raises:
        ConfigError: `file_type` is not known.
        DataError: it is a mixture of types, or a type is not known.
    """
    if source.file_type is not None:
        check_choice("file_type", source.file_type, FILE_CHUNKS.names(), is_open=True)
    if isinstance(found, Folder):
        return _of_one_type(found.files, source)
    return [_typed(file, source) for file in found]


def local_path(path: str) -> str:
    """The path on this machine: without `file://`, `~` spelt out."""
    return os.path.expanduser(re.sub(r"^(file|local)://", "", path))


def is_glob(path: str) -> bool:
    """Whether a path holds a pattern; in web addresses `?` begins the query."""
    marks = r"[*\[]" if path.startswith(("http://", "https://")) else r"[*?\[]"
    return re.search(marks, path) is not None


def _list(source: SourceConfig, timeout: float) -> Folder | list[SourceFile]:
    if is_remote(source.path):
        return _list_remote(source, timeout)
    path = local_path(source.path)
    if os.path.isdir(path):
        found = []
        for top, folders, names in os.walk(path, onerror=_refuse, followlinks=True):
            folders[:] = [name for name in folders if not _is_hidden(name)]
            found += [os.path.join(top, name) for name in names if not _is_hidden(name)]
        return Folder(path, [_local(name, source) for name in sorted(found)])
    if os.path.isfile(path):
        return [_local(path, source)]
    if not is_glob(path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)  # Where a folder above may not be read, this says so.
        raise DataError(f"{source.path!r} does not exist; give a file, folder, glob or Hub name.")
    found = sorted(glob.glob(path, recursive=True))
    return [_local(name, source) for name in found if os.path.isfile(name)]


def _refuse(error: OSError) -> None:
    raise error  # Of a folder that may not be read.


def _is_hidden(name: str) -> bool:
    """Dot files, and what Hadoop and Spark leave beside data (`_SUCCESS`, `_temporary`)."""
    return name.startswith((".", "_"))


def _local(path: str, source: SourceConfig) -> SourceFile:
    status = os.stat(path)
    return SourceFile(path, path, source.file_type or "", status.st_size, str(status.st_mtime_ns))


def _list_remote(source: SourceConfig, timeout: float) -> Folder | list[SourceFile]:
    filesystem, path = open_filesystem(source.path, source.storage_options, timeout)
    is_folder = False
    if is_glob(source.path):
        found = filesystem.glob(path, detail=True)
    else:
        info = filesystem.info(path)
        is_folder = info["type"] == "directory" or source.path.endswith("/")
        found = filesystem.find(path, detail=True) if is_folder else {path: info}
    base = path.rstrip("/") + "/"
    files = [
        _remote(name, info, filesystem, source)
        for name, info in sorted(found.items())
        if info["type"] != "directory"
        and not (is_folder and any(map(_is_hidden, name.removeprefix(base).split("/"))))
    ]
    files = _readable_in_parts(files, source, timeout)
    return Folder(path, files) if is_folder else files


def _remote(
    path: str, info: dict[str, Any], filesystem: "AbstractFileSystem", source: SourceConfig
) -> SourceFile:
    if info.get("size") is None:
        info = filesystem.info(path)  # Listings of web pages tell no sizes.
    touched = next((str(info[key]) for key in STAMPS if info.get(key) is not None), "")
    ranged = bool(info.get("partial", True))
    address = _address(path, source.path)
    file_type = source.file_type or ""
    return SourceFile(address, path, file_type, info.get("size"), touched, filesystem, ranged)


def _address(path: str, given: str) -> str:
    """The whole address of a path, without user and password."""
    if "://" in path:
        return path
    parts = urlsplit(given)
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme in ("hdfs", "viewfs", "webhdfs"):
        return f"{parts.scheme}://{host}{path}"
    return f"{parts.scheme}://{path.lstrip('/')}"


def _readable_in_parts(
    files: list[SourceFile], source: SourceConfig, timeout: float
) -> list[SourceFile]:
    """Find out whether a web server reads parts of files, by asking for one byte."""
    if not files or urlsplit(source.path).scheme not in ("http", "https"):
        return files
    largest = max(files, key=lambda file: file.size or 0)
    if largest.ranged and (largest.size or 0) > 1 and _reads_parts(largest):
        return files
    options = {**source.storage_options, "block_size": 0}  # fsspec then reads from the beginning.
    filesystem, _ = open_filesystem(source.path, options, timeout)
    return [replace(file, ranged=False, filesystem=filesystem) for file in files]


def _reads_parts(file: SourceFile) -> bool:
    assert file.filesystem is not None and file.size is not None
    try:
        with file.filesystem.open(file.path, "rb", cache_type="none") as opened:
            opened.seek(file.size - 1)
            return len(opened.read(1)) == 1
    except TimeoutError:
        raise
    except OSError:
        return False


def _of_one_type(files: Sequence[SourceFile], source: SourceConfig) -> list[SourceFile]:
    """The files of one type; a mixture is refused, since a guess would lose data."""
    typed = [(file, type_of_ending(file.name)) for file in files]
    wanted = [(file, kind) for file, kind in typed if kind and source.file_type in (None, kind)]
    kinds = sorted({kind for _, kind in wanted if kind})
    if len(kinds) > 1:
        raise DataError(
            f"{shown(source.path)} holds files of types {kinds}; choose one with `file_type`, or "
            "give a glob."
        )
    if not wanted:
        kind = f"of type {source.file_type!r}, with an ending" if source.file_type else "that ends"
        raise DataError(
            f"{shown(source.path)} holds no file {kind} in {', '.join(known_endings())} (or these "
            "+ .gz, .zst; names that begin with . or _ do not count); give a glob and `file_type`."
        )
    return [replace(file, file_type=kind) for file, kind in wanted if kind]


def _typed(file: SourceFile, source: SourceConfig) -> SourceFile:
    kind = file.file_type or type_of_ending(file.name)
    if kind is None:
        suffix = PurePosixPath(file.name).suffix
        raise DataError(
            f"{file}: the ending {suffix!r} belongs to no file type; set `file_type` to one of "
            f"{', '.join(FILE_CHUNKS.names())}."
        )
    return replace(file, file_type=kind)
