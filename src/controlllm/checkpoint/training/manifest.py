"""The completion mark of a training checkpoint: what files it has, with their sizes and SHA-256.

The manifest is written last. A folder whose files do not fit its manifest, or that has none, is
not loaded, and the error says which file and why: one that is not listed, too. The manifest tells
what is whole. It is no signature: who can change the files can write it anew.
"""

import json
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

from controlllm.checkpoint.training.saved import KINDS
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.checksums import Files, compare_files, list_files
from controlllm.common.storage.files import MOST_JSON, write_json
from controlllm.common.storage.schema import check_record

__all__ = ["MANIFEST", "STATE", "parse_manifest", "verify_manifest", "write_manifest"]

MANIFEST, STATE = "manifest.json", "state.json"
FORMAT = "controlllm-checkpoint"
FORMAT_VERSION = 2
_ALWAYS = (STATE, "state.safetensors")
_READ = (".safetensors", ".json", ".py")
"""Files of these suffixes are found by them, even hidden ones."""


class _Manifest(TypedDict):
    format: Required[Literal["controlllm-checkpoint"]]
    version: Required[int]
    files: Required[Files]


def write_manifest(folder: Path) -> None:
    """List every file of `folder` in its manifest."""
    value = {"format": FORMAT, "version": FORMAT_VERSION, "files": list_files(folder)}
    write_json(folder / MANIFEST, value)


def verify_manifest(folder: str | Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        CheckpointError: naming the first file that does not fit, or the format that is not ours.
    """
    folder, advice = Path(folder), "use another checkpoint"
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; give a checkpoint-N or a run folder.")
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a whole training checkpoint: it has no {MANIFEST}; {advice}."
        )
    files = parse_manifest(path.read_bytes(), path)["files"]
    compare_files(folder, files, MANIFEST, advice)
    for path in sorted(folder.iterdir()):
        known = path.name in files or path.name == MANIFEST
        passed = path.name.startswith(".") and path.suffix not in _READ  # of systems and hubs
        if not known and not passed:
            raise CheckpointError(
                f"{path} is not in {MANIFEST}: the checkpoint was not written with it. Remove it, "
                f"or {advice}."
            )


def parse_manifest(content: bytes, where: object) -> dict[str, Any]:
    """What a manifest says.

    Raises:
        CheckpointError: if it is damaged, foreign, or of a newer format.
    """
    try:
        manifest = json.loads(content) if len(content) <= MOST_JSON else None
    except (ValueError, RecursionError) as error:
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
    checked: dict[str, Any] = check_record(manifest, _Manifest, where)
    if missing := _missing(checked["files"]):
        raise CheckpointError(
            f"{where} is damaged: it does not list {missing}, without which there is no "
            "checkpoint; use another one."
        )
    return checked


def _missing(files: dict[str, Any]) -> str | None:
    """What every checkpoint has and this list lacks."""
    kind = next((kind for kind in KINDS.values() if kind.config in files), None)
    if kind is None:
        return "the config of a model"
    in_parts = any(name.startswith("shard-") for name in files)
    own = () if in_parts else (kind.weights, "optimizer.safetensors")
    return next((name for name in (*_ALWAYS, *own) if name not in files), None)
