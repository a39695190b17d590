"""The completion mark of a training checkpoint: what files it has, with their sizes and SHA-256.

The manifest is written last. A folder whose files do not fit its manifest, or that has none, is
not loaded, and the error says which file and why.
"""

import json
from pathlib import Path
from typing import Any

from controlllm.checkpoint.names import is_plain
from controlllm.common.errors import CheckpointError
from controlllm.common.files import file_digest, write_json

__all__ = ["MANIFEST", "parse_manifest", "verify_manifest", "write_manifest"]

MANIFEST = "manifest.json"
FORMAT = "controlllm-checkpoint"
FORMAT_VERSION = 2


def write_manifest(folder: Path) -> None:
    """List every file of `folder` in its manifest."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.iterdir())
    }
    value = {"format": FORMAT, "version": FORMAT_VERSION, "files": files}
    write_json(folder / MANIFEST, value)


def verify_manifest(folder: str | Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        CheckpointError: naming the first file that does not fit, or the format that is not ours.
    """
    folder = Path(folder)
    for name, entry in _read_manifest(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} lacks its file {name}; use another checkpoint.")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(
                f"{path} is truncated or changed: {size} bytes instead of {entry['bytes']}; "
                "use another checkpoint."
            )
        if file_digest(path) != entry["sha256"]:
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 is not the manifest's; use another checkpoint."
            )


def parse_manifest(content: bytes, where: object) -> dict[str, Any]:
    """What a manifest says.

    Args:
        content: the file's content.
        where: the file, for messages.

    Raises:
        CheckpointError: if it is damaged, foreign, or of a newer format.
    """
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{where} cannot be read as JSON: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{where} was not written by this library.")
    version = manifest.get("version")
    if isinstance(version, int) and version < FORMAT_VERSION:
        raise CheckpointError(
            f"{where} has checkpoint format {version}, which an earlier controlllm wrote (this "
            f"one: {FORMAT_VERSION}); finish the run with that version."
        )
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{where} has checkpoint format {version}, newer than this library's "
            f"{FORMAT_VERSION}; upgrade controlllm."
        )
    if version != FORMAT_VERSION or not _lists_files(manifest.get("files")):
        raise CheckpointError(
            f"{where} is damaged: it does not list the files of a checkpoint; use another one."
        )
    return manifest


def _lists_files(files: Any) -> bool:
    return isinstance(files, dict) and all(
        is_plain(name) and isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()
        for name, entry in files.items()
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; give a checkpoint-N folder or a run folder.")
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{folder} is not a whole training checkpoint: it has no {MANIFEST}; use another one."
        )
    return parse_manifest((folder / MANIFEST).read_bytes(), folder / MANIFEST)
