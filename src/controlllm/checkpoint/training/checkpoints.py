"""The checkpoints of a run folder: which there are, the newest whole one, the best one.

Nothing here needs torch, so that looking into a folder is quick.
"""

import warnings
from pathlib import Path
from typing import Any, TypedDict

from controlllm.checkpoint.training.manifest import verify_manifest
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.files import clean_leftovers, read_json, remove_folder, write_json
from controlllm.common.storage.schema import check_record
from controlllm.common.text.names import is_checkpoint

__all__ = [
    "BEST",
    "best_checkpoint",
    "best_named",
    "checkpoint_step",
    "list_checkpoints",
    "mark_best",
    "newest_checkpoint",
    "prune_checkpoints",
    "resolve_checkpoint",
]

BEST = "best.json"


class _BestFile(TypedDict):
    """`best.json`."""

    checkpoint: str
    step: int
    metrics: dict[str, float]


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """All folders `checkpoint-N` of a run by rising step, without looking inside."""
    found = [(checkpoint_step(path), path) for path in Path(output_dir).glob("checkpoint-*")]
    return [path for step, path in sorted(found) if step >= 0 and path.is_dir()]


def newest_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a run, or None; warns of each broken one passed over."""
    for path in reversed(list_checkpoints(output_dir)):
        try:
            verify_manifest(path)
        except CheckpointError as error:
            warnings.warn(f"Passing over a checkpoint: {error}", stacklevel=2)
            continue
        return path
    return None


def resolve_checkpoint(output_dir: str | Path, resume: str | Path) -> Path | None:
    """What `resume_from_checkpoint` means.

    Args:
        output_dir: the run folder.
        resume: "auto" for the newest whole checkpoint of the run (None where there is none),
            "best", or a folder.

    Raises:
        CheckpointError: if the folder asked for is not a whole checkpoint, or there is no best one.
    """
    clean_leftovers(output_dir)
    if resume == "auto":
        return newest_checkpoint(output_dir)
    folder = best_checkpoint(output_dir) if resume == "best" else Path(resume)
    if folder is None:
        raise CheckpointError(f"{output_dir} has no best checkpoint yet; resume from 'auto'.")
    verify_manifest(folder)
    return folder


def mark_best(output_dir: str | Path, step: int, metrics: dict[str, float]) -> None:
    """Remember `checkpoint-{step}` as the best one of the run; it is then never pruned.

    Raises:
        CheckpointError: if there is no such checkpoint.
    """
    name = f"checkpoint-{step}"
    if not (Path(output_dir) / name).is_dir():
        raise CheckpointError(f"{output_dir} has no {name} to be marked as the best.")
    write_json(Path(output_dir) / BEST, {"checkpoint": name, "step": step, "metrics": metrics})


def best_checkpoint(output_dir: str | Path) -> Path | None:
    """The checkpoint marked as the best, or None.

    Raises:
        CheckpointError: if the one marked is gone, or the mark is damaged.
    """
    path = Path(output_dir) / BEST
    if not path.is_file():
        return None
    best = Path(output_dir) / best_named(read_json(path), path)
    if not best.is_dir():
        raise CheckpointError(f"{path} names {best.name}, which is not there; remove {path}.")
    return best


def best_named(mark: Any, where: object) -> str:
    """The name of the checkpoint that a `best.json` marks.

    Raises:
        CheckpointError: if that is not the name of a checkpoint of the same run.
    """
    name = mark.get("checkpoint") if isinstance(mark, dict) else None
    if not is_checkpoint(name):
        raise CheckpointError(f"{where} is damaged: it names no checkpoint-N; remove it.")
    if check_record(mark, _BestFile, where)["step"] != checkpoint_step(str(name)):
        raise CheckpointError(f"{where} is damaged: its step is not that of {name}; remove it.")
    return str(name)


def checkpoint_step(path: str | Path) -> int:
    """The step in the name of a checkpoint's folder; -1 for any other name."""
    name = Path(path).name
    return int(name.rpartition("-")[2]) if is_checkpoint(name) else -1


def prune_checkpoints(output_dir: Path, limit: int | None, keep: Path) -> None:
    """Remove the oldest checkpoints beyond the limit, never the best one nor `keep`."""
    if limit is None:
        return
    kept = {keep, best_checkpoint(output_dir)}
    checkpoints = list_checkpoints(output_dir)
    removable = [path for path in checkpoints if path not in kept]
    for path in removable[: max(len(checkpoints) - max(limit, 1), 0)]:
        remove_folder(path)
