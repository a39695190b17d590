"""Atomic writing: a file or a folder under its final name is always whole.

Everything is written under a temporary name in the same folder, flushed to the disk and then
renamed. A process that is killed leaves at most a temporary name behind; readers never look at
those, and the next writer into the same folder removes them.

    .checkpoint-40.writing-host-4242-0   being written, or left over by process 4242 of `host`
    .checkpoint-40.replaced              the old folder, while a new one takes its name
    checkpoint-40                        whole
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from controlllm.common.errors import CheckpointError

__all__ = [
    "atomic_file",
    "atomic_folder",
    "clean_leftovers",
    "file_digest",
    "folder_bytes",
    "read_json",
    "remove_folder",
    "require_empty",
    "save_tensors",
    "write_json",
    "write_text",
]

_LEFTOVER = re.compile(r"^\.(?P<name>.+)\.writing-(?P<host>.+)-(?P<pid>\d+)-\d+$")
_FOREIGN_LEFTOVER_SECONDS = 24 * 3600
_serial = itertools.count()
_active: set[Path] = set()


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with its parent folders.

    Raises:
        CheckpointError: if it cannot be written; an older file of that name is then untouched.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        CheckpointError: if the value is not JSON or the file cannot be written.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be written as JSON: {error}.") from error
    write_text(path, text)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: if it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error


def save_tensors(
    path: str | Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file in place, inside an `atomic_folder` or `atomic_file`.

    Tensors that share or stride over memory are copied first, as the format wants them apart.
    """
    from safetensors.torch import save_file

    save_file(_apart(tensors), str(path), metadata=metadata)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it takes the name `path` when the block ends well.

    Raises:
        CheckpointError: if the disk is full or the place cannot be written.
    """
    target = Path(path)
    with _temporary(target) as temporary:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; it takes the name `path` when the block ends well.

    Args:
        path: the folder's final name.
        overwrite: whether an existing non-empty folder is replaced, once the new is whole.

    Raises:
        CheckpointError: if `path` is not empty and `overwrite` is false, or if writing fails.
    """
    target = Path(path)
    if not overwrite:
        require_empty(target)
    with _temporary(target) as temporary:
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _sync(file)
        _sync(temporary)
        _swap_in(temporary, target)


def require_empty(folder: str | Path) -> None:
    """Check that `folder` is absent or empty.

    Raises:
        CheckpointError: if something is there.
    """
    target = Path(folder)
    if target.is_file():
        raise CheckpointError(f"{target} is a file, not a folder; choose another name.")
    if target.is_dir() and any(target.iterdir()):
        raise CheckpointError(
            f"{target} exists and is not empty; choose another folder, or ask for overwriting."
        )


def clean_leftovers(folder: str | Path) -> list[Path]:
    """Remove what interrupted writers left in `folder`, and return what was removed.

    A temporary name counts as left over when its process is gone (on this host) or when it has
    not changed for a day (another host on a shared file system). A replacement that stopped
    between its two renames is undone.
    """
    removed = []
    for path in Path(folder).glob(".*.replaced"):
        _put_back_replaced(path.with_name(path.name.removeprefix(".").removesuffix(".replaced")))
    for path in Path(folder).glob(".*.writing-*"):
        if path not in _active and _is_abandoned(path):
            _remove(path)
            removed.append(path)
    return removed


def remove_folder(path: str | Path) -> None:
    """Remove a folder in such a way that at no moment a part of it has its name.

    Raises:
        CheckpointError: it cannot be removed.
    """
    target = Path(path)
    hidden = _temporary_name(target)
    try:
        os.rename(target, hidden)
        shutil.rmtree(hidden)
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
def _temporary(target: Path) -> Iterator[Path]:
    """Name a temporary neighbour of `target`, and discard it whatever happens."""
    temporary = _temporary_name(target)
    with _told_as_ours(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        clean_leftovers(target.parent)
        _active.add(temporary)
        try:
            yield temporary
        finally:
            _active.discard(temporary)
            _remove(temporary)


def _temporary_name(target: Path) -> Path:
    """A neighbour that readers pass over; once this process is gone, it counts as left over."""
    host = socket.gethostname()
    return target.parent / f".{target.name}.writing-{host}-{os.getpid()}-{next(_serial)}"


@contextmanager
def _told_as_ours(path: Path) -> Iterator[None]:
    """Turn errors of the disk into a `CheckpointError` that names the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {_final(path)}: {error}. What was saved before is untouched; "
            "free some space or choose another place, and run again."
        ) from error


def _final(path: Path) -> Path:
    """The path as it will be once the temporary folder it lies in has its name."""
    return Path(*(_LEFTOVER.sub(r"\g<name>", part) for part in path.parts))


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap_in(temporary: Path, target: Path) -> None:
    """Give `temporary` the name `target`, moving an older folder out of the way first."""
    replaced = _replaced_name(target)
    if target.exists():
        os.rename(target, replaced)
    os.rename(temporary, target)
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _put_back_replaced(target: Path) -> None:
    """Undo a swap that was interrupted between its two renames."""
    replaced = _replaced_name(target)
    if not replaced.exists():
        return
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        os.rename(replaced, target)


def _replaced_name(target: Path) -> Path:
    return target.parent / f".{target.name}.replaced"


def _is_abandoned(path: Path) -> bool:
    match = _LEFTOVER.match(path.name)
    if match is None:
        return False
    if match["host"] != socket.gethostname():
        return time.time() - path.stat().st_mtime > _FOREIGN_LEFTOVER_SECONDS
    return int(match["pid"]) == os.getpid() or not _is_alive(int(match["pid"]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
