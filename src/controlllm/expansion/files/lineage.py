"""The stages that a model was trained after: what is recorded of them, and whether one is it.

A sidecar's config lists its `parents`, the oldest first. Each is known by a digest of its settings
and tensors, so that a place in somebody's file is followed only to what the record means.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from controlllm.common.errors import CheckpointError
from controlllm.expansion.files.places import lies_in_run
from controlllm.expansion.files.records import (
    BASE,
    BRANCH,
    FOLD,
    function_digest,
    read_sidecar_config,
)
from controlllm.expansion.files.sidecar import read_sidecar_tensors

__all__ = [
    "as_recorded",
    "check_parent",
    "dial_beside",
    "dial_of",
    "folded_parent",
    "parent_record",
    "parents_beside",
    "parents_of_base",
    "sidecar_digest",
    "stage_name",
]


def sidecar_digest(folder: Path, tensors: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256 over what a sidecar is: its settings, its parents and every bit of its tensors.

    Neither its dial nor where anything lies counts: a copy of it has the same.

    Args:
        folder: the sidecar, or a checkpoint that is one.
        tensors: its tensors, if they are not in one file of it.

    Raises:
        CheckpointError: it is missing or broken.
    """
    digest = hashlib.sha256(function_digest(read_sidecar_config(folder)).encode())
    saved = read_sidecar_tensors(folder) if tensors is None else tensors
    for name in sorted(saved):
        tensor = saved[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def parent_record(
    folder: Path,
    place: str,
    way: str,
    names: Sequence[str] = (),
    tensors: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """What a sidecar records of a stage that it goes on from.

    Args:
        folder: the stage: a sidecar, or a checkpoint of its run.
        place: what it is found by: that folder, or a name on the Hub.
        way: how it is gone on from.
        names: of stages before it, none of which it may have.
        tensors: its tensors, if they are not in one file of it.
    """
    values = read_sidecar_config(folder)
    return {
        "name": stage_name(Path(place), names),
        "place": place,
        "digest": sidecar_digest(folder, tensors),
        "way": way,
        "dial": as_recorded(values["expansion"].get("dial")),
    }


def stage_name(folder: Path, taken: Sequence[str] = ()) -> str:
    """What a stage is called: as its run's folder, in plain letters, told apart from others.

    A checkpoint lies in its run's folder, and so may a sidecar (`calibrated`).

    >>> stage_name(Path("runs/a/checkpoint-40")), stage_name(Path("runs/a"), ["a"])
    ('a', 'a-2')
    """
    path = Path(folder).absolute()
    inside = path.name.startswith("checkpoint-") or lies_in_run(path)
    named = path.parent if inside else path
    plain = re.sub(r"[^\w.-]", "-", named.name, flags=re.ASCII)[:56].lstrip("_.-") or "stage"
    name, number = plain, 2
    while name in (BASE, *taken):
        name, number = f"{plain}-{number}", number + 1
    return name


def folded_parent(parents: Sequence[Mapping[str, Any]]) -> int | None:
    """The index of the last stage that was folded into the base; None if none was."""
    folded = [index for index, parent in enumerate(parents) if parent["way"] == FOLD]
    return folded[-1] if folded else None


def parents_beside(parents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those of the stages before whose sidecars stand beside the one that records them."""
    last = folded_parent(parents)
    after = parents[0 if last is None else last + 1 :]
    return [dict(parent) for parent in after if parent["way"] == BRANCH]


def dial_beside(parent: Mapping[str, Any]) -> Any:
    """Where the dial of such a stage stands beside the sidecar that records it."""
    return _dial(parent["weight"]) if "weight" in parent else dial_of(parent)


def dial_of(parent: Mapping[str, Any]) -> Any:
    """Where the dial of a stage stood when it was continued."""
    return _dial(parent.get("dial"))


def as_recorded(dial: Any) -> Any:
    """A dial as JSON has it: layers are texts there."""
    return json.loads(json.dumps(dial))


def _dial(recorded: Any) -> Any:
    if not isinstance(recorded, Mapping):
        return recorded
    return {int(layer): alpha for layer, alpha in recorded.items()}


def parents_of_base(parents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those of the stages before that the base is made of, as another model of it records them."""
    last = folded_parent(parents)
    return [] if last is None else [dict(parent) for parent in parents[: last + 1]]


def check_parent(
    record: Mapping[str, Any],
    folder: Path,
    what: str,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Check that what lies in a folder is the stage that is recorded.

    Raises:
        CheckpointError: it is another one.
    """
    found = sidecar_digest(folder, tensors)
    if found != record["digest"]:
        raise CheckpointError(
            f"{what} was trained after the stage {record['name']!r} ({record['digest'][:16]}), but "
            f"{folder} holds another one ({found[:16]}). Put the stage it names back there."
        )
