"""Which files were written together: `checksums.json` beside an exported model.

It tells truncated, damaged and half-copied files. It is no signature: who can change the files
can change the sums as well.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict

from controlllm.common.errors import CheckpointError
from controlllm.common.storage.files import file_digest, write_json
from controlllm.common.storage.schema import at_most, between, fitting, matching, read_record
from controlllm.common.text.names import is_plain

__all__ = [
    "CHECKSUMS",
    "Files",
    "compare_files",
    "list_files",
    "resealed",
    "verify_checksums",
    "write_checksums",
]

CHECKSUMS = "checksums.json"
_FREE = ("README.md", ".gitattributes")
"""What hubs and people edit, and no number depends on."""
_FOUND = (".safetensors", ".index.json")
"""Ends of the names of files that loaders look for, and might find where they were not written."""


class _File(TypedDict):
    bytes: Annotated[int, between(0, 2**62)]
    sha256: Annotated[str, matching("[0-9a-f]{64}", "64 hex digits")]


_Name = Annotated[str, fitting(is_plain, "a plain file name")]
Files = Annotated[dict[_Name, _File], at_most(200_000)]
"""Size and SHA-256 of files, by their names."""


class _Checksums(TypedDict):
    files: Required[Files]


def list_files(folder: Path) -> dict[str, Any]:
    """Size and SHA-256 of every file that lies directly in a folder."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and is_plain(path.name)
    }


def write_checksums(folder: str | Path) -> None:
    """Write `checksums.json` for a folder, without the files that hubs and people edit."""
    free = (CHECKSUMS, *_FREE)
    files = {name: file for name, file in list_files(Path(folder)).items() if name not in free}
    write_json(Path(folder) / CHECKSUMS, {"files": files})


@contextmanager
def resealed(folder: str | Path) -> Iterator[None]:
    """Let files of a folder change inside; its `checksums.json`, if any, is then written anew.

    A process that is killed inside leaves the folder without a note, which loads.
    """
    note = Path(folder) / CHECKSUMS
    had = note.is_file()
    note.unlink(missing_ok=True)
    yield
    if had:
        write_checksums(folder)


def verify_checksums(folder: str | os.PathLike[str], ours: bool = False) -> None:
    """Compare a folder with its `checksums.json`; one without passes: only exports have one.

    Args:
        folder: where the files lie.
        ours: whether only this library writes such folders, so that a missing note is told. (A
            training checkpoint has a manifest instead.)

    Raises:
        CheckpointError: with the file that is missing, was changed, or holds other weights.
    """
    path = Path(folder) / CHECKSUMS
    if not path.is_file():
        if ours and not path.with_name("manifest.json").is_file():
            warnings.warn(
                f"{folder} has no {CHECKSUMS}, which every export has: its files may be "
                "incomplete or changed.",
                stacklevel=2,
            )
        return
    advice = f"export or download it again (if the change is your own: take it out of {path})"
    files = read_record(path, _Checksums)["files"]
    compare_files(Path(folder), files, CHECKSUMS, advice)
    for other in sorted(Path(folder).iterdir()):
        if other.name.endswith(_FOUND) and other.name not in files:
            raise CheckpointError(
                f"{other} is not in {CHECKSUMS}, but loaders would read it; remove it."
            )


def compare_files(folder: Path, files: dict[str, Any], note: str, advice: str) -> None:
    """Compare files with their sizes and SHA-256 (CheckpointError)."""
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} lacks its file {name}; {advice}.")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(
                f"{path} is truncated or changed: {size} bytes instead of {entry['bytes']}; "
                f"{advice}."
            )
        if file_digest(path) != entry["sha256"]:
            raise CheckpointError(
                f"{path} is damaged or changed: its SHA-256 is not that of {note}; {advice}."
            )
