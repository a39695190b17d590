"""What a path or name is: one small pure look at file names, before anything is loaded."""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from controlllm.checkpoint.mirror.copies import local_copy
from controlllm.checkpoint.training.checkpoints import (
    best_checkpoint,
    list_checkpoints,
    newest_checkpoint,
)
from controlllm.checkpoint.training.manifest import MANIFEST, STATE
from controlllm.checkpoint.training.saved import KINDS, kind_in
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.remote import is_remote, shown
from controlllm.expansion.files.records import read_model_file
from controlllm.expansion.method.expansion_config import MODEL_TYPE, SIDECARS_TYPE

__all__ = ["Kind", "Location", "form_in", "is_hub_name", "locate", "locate_recorded"]

_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


class Kind(Enum):
    """The forms a model can have on disk."""

    CHECKPOINT = "training checkpoint"
    SIDECAR = "sidecar"
    ADAPTER = "PEFT adapter"
    PART = "part of a model"
    EXPANDED = "full expanded model"
    PLAIN = "Hugging Face model"
    HUB = "name on the Hugging Face Hub"


@dataclass(frozen=True)
class Location:
    """Where a model lies, and in which form."""

    kind: Kind
    path: str


def locate(path_or_name: str | Path, storage_options: dict[str, Any] | None = None) -> Location:
    """Find out what `path_or_name` is.

    A run folder means its best checkpoint, else its newest whole one; `run/best` the best one.
    What lies at an address (`hdfs://...`) is copied to this machine first.

    Raises:
        CheckpointError: if it is a path and nothing that can be loaded lies there.
    """
    if is_remote(path_or_name):
        path_or_name = local_copy(str(path_or_name), storage_options)
    path = Path(path_or_name)
    if path.name == "best" and not path.exists():
        best = best_checkpoint(path.parent)
        if best is not None:
            return Location(Kind.CHECKPOINT, str(best))
    if path.is_dir():
        return _look_into(path)
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder that holds the model.")
    if not is_hub_name(str(path_or_name)):
        raise CheckpointError(f"{path} does not exist; give a folder or a name on the Hub.")
    return Location(Kind.HUB, str(path_or_name))


def is_hub_name(name: str) -> bool:
    """Whether a name could be one on the Hub: `owner/model`, or one word; a path could be, too."""
    return _HUB_NAME.match(name) is not None


def locate_recorded(name: object, where: object) -> Location:
    """Find the base that a saved model records, as `locate` does.

    The maker of the folder wrote that name. So it leads to this machine's disk or to the Hub, never
    to another server, which would be told who asks and shown the user's token.

    Raises:
        CheckpointError: if none is recorded, it is an address, or nothing lies there.
    """
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{where} does not record the name of its base; give it as `base`.")
    if "://" in name or "::" in name:
        raise CheckpointError(
            f"{where} records an address as its base, {shown(name)!r}: only names on the Hub and "
            "local paths are followed. If you trust that server, give the address yourself as "
            "`base`."
        )
    try:
        return locate(name)
    except CheckpointError as error:
        raise CheckpointError(
            f"the base of {where} is {name}, which is not here; give its folder or name as `base`."
        ) from error


def form_in(folder: Path) -> Kind | None:
    """The form of what lies in a folder, of a checkpoint too; None if it is no model.

    Raises:
        CheckpointError: its config cannot be read.
    """
    saved = kind_in(folder)
    if saved is None:
        return None
    expanded = saved.name == "full" and read_model_file(folder).get("model_type") in _EXPANDED
    return Kind.EXPANDED if expanded else _FORMS[saved.name]


def _look_into(folder: Path) -> Location:
    if (folder / MANIFEST).is_file() or (folder / STATE).is_file():
        return Location(Kind.CHECKPOINT, str(folder))
    if (form := form_in(folder)) is not None:
        return Location(form, str(folder))
    if list_checkpoints(folder):
        checkpoint = best_checkpoint(folder) or newest_checkpoint(folder)
        if checkpoint is None:
            raise CheckpointError(f"{folder} holds no whole checkpoint.")
        return Location(Kind.CHECKPOINT, str(checkpoint))
    files = ", no ".join(kind.config for kind in KINDS.values())
    raise CheckpointError(f"{folder} holds no model: no {files} and no checkpoint-N folder.")


_EXPANDED = (MODEL_TYPE, SIDECARS_TYPE)
_FORMS = {
    "control": Kind.SIDECAR,
    "adapters": Kind.ADAPTER,
    "part": Kind.PART,
    "full": Kind.PLAIN,
}
"""The form of a folder by the kind of what lies in it."""
