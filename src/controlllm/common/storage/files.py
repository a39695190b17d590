"""Atomic writing: a file or a folder under its final name is always whole.

Everything is written under another name in the same folder (see `workplace`), flushed to the disk,
renamed, and the name is flushed, too. A process that is killed leaves at most a workplace behind;
readers never look at those, and the next writer into the same folder removes them.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from controlllm.common.errors import CheckpointError
from controlllm.common.storage.workplace import (
    clean_leftovers,
    final_path,
    swap_in,
    sync,
    sync_tree,
    workplace,
)

__all__ = [
    "as_usual",
    "atomic_file",
    "atomic_folder",
    "clean_leftovers",
    "file_digest",
    "folder_bytes",
    "read_json",
    "remove_folder",
    "require_empty",
    "require_writable",
    "save_tensors",
    "write_json",
    "write_text",
]

MOST_JSON = 64 * 2**20
"""Bytes of a JSON file of settings, names or sizes: a large model's have some MB."""


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with its parent folders.

    Raises:
        CheckpointError: if it cannot be written; an older file of that name is then untouched.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically; without indent in one line, several times as quickly.

    Raises:
        CheckpointError: if the value is not JSON or the file cannot be written.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be written as JSON: {error}.") from error
    write_text(path, text)


def read_json(path: str | Path, most_bytes: int = MOST_JSON) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: if it is missing, too large, unreadable, nested too deep or not JSON.
    """
    try:
        if (size := Path(path).stat().st_size) > most_bytes:
            raise CheckpointError(
                f"{path} has {size:,} bytes, more than such a file ever needs ({most_bytes:,}); "
                "it is not read."
            )
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON: {error}; write, export or download it again."
        ) from error


def save_tensors(
    path: str | Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file in place, inside an `atomic_folder` or `atomic_file`.

    Tensors that share or stride over memory are copied first, as the format wants them apart.
    """
    from safetensors.torch import save_file

    save_file(_apart(tensors), str(path), metadata=metadata)
    as_usual(path)


def as_usual(path: str | Path) -> None:
    """Give a file the mode of any new one: safetensors keeps its files for their owner alone."""
    probe = Path(path).with_name(f".{Path(path).name}.mode")
    probe.touch()
    Path(path).chmod(probe.stat().st_mode)
    probe.unlink()


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it takes the name `path` when the block ends well.

    Raises:
        CheckpointError: if the disk is full or the place cannot be written.
    """
    target = Path(path)
    with _told_as_ours(target), workplace(target) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; it takes the name `path` when the block ends well.

    Args:
        path: the folder's final name.
        overwrite: whether an existing non-empty folder is replaced, once the new is whole.

    Raises:
        CheckpointError: if `path` is not empty and `overwrite` is false, if it is a file, or if
            writing fails.
    """
    target = Path(path)
    with _told_as_ours(target):
        if not overwrite or target.is_file():
            require_empty(target)
        with workplace(target) as temporary:
            temporary.mkdir()
            yield temporary
            sync_tree(temporary)
            swap_in(temporary, target)


def require_empty(folder: str | Path) -> None:
    """Check that `folder` is absent or empty (CheckpointError)."""
    target = Path(folder)
    if target.is_file():
        raise CheckpointError(f"{target} is a file, not a folder; choose another name.")
    if target.is_dir() and any(target.iterdir()):
        raise CheckpointError(
            f"{target} exists and is not empty; choose another folder, or overwrite it "
            "(overwrite=True, --overwrite)."
        )


def require_writable(path: str | Path, folder: bool = False) -> None:
    """Check before long work that its result can be written (CheckpointError); nothing is left."""
    target = Path(path)
    try:
        if target.is_dir() and not folder:
            raise CheckpointError(f"cannot write {target}: it is a folder; name a file.")
        if folder and target.exists() and not target.is_dir():
            raise CheckpointError(f"cannot write {target}: it is a file; name a folder.")
        above = target if target.is_dir() else target.parent
        place = next(each for each in (above, *above.parents) if each.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise CheckpointError(
            f"cannot write {target}: {error.strerror}; choose another place."
        ) from error


def remove_folder(path: str | Path) -> None:
    """Remove a folder in such a way that at no moment a part of it has its name.

    Raises:
        CheckpointError: it cannot be removed.
    """
    target = Path(path)
    try:
        with workplace(target) as hidden:
            os.rename(target, hidden)
            sync(target.parent)
    except OSError as error:
        raise CheckpointError(f"cannot remove {target}: {error}.") from error


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(folder: str | Path) -> int:
    """The size of all files below `folder`, in bytes."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


@contextmanager
def _told_as_ours(path: Path) -> Iterator[None]:
    """Turn errors of the disk into a `CheckpointError` that names the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {final_path(path)}: {error}. What was saved before is untouched; "
            "free some space or choose another place, and run again."
        ) from error


def _apart(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same tensors on the CPU, contiguous, none sharing memory with another."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        is_part = storage.nbytes() != plain.numel() * plain.element_size()
        shared = is_part or storage.data_ptr() in seen
        result[name] = plain.clone() if shared else plain
        seen.add(result[name].untyped_storage().data_ptr())
    return result
