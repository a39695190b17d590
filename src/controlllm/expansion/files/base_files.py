"""The safetensors files that a model was loaded from, read one tensor at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from controlllm.common.storage.schema import read_record
from controlllm.expansion.files.records import IndexFile

__all__ = ["INDEX", "BaseFiles", "file_of"]

_WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class BaseFiles:
    """Where each tensor lies."""

    places: dict[str, Path]

    @classmethod
    def of(cls, model: Any) -> "BaseFiles | None":
        """The files of a model by the name that it was loaded by; None where they are not here.

        Nothing is downloaded: what was loaded from the Hub is looked for in its cache.
        """
        name = getattr(getattr(model, "config", None), "_name_or_path", "")
        if not name:
            return None
        revision = getattr(model.config, "_commit_hash", None)
        try:
            if (index := file_of(name, INDEX, revision, local_files_only=True)) is not None:
                places = read_record(index, IndexFile)["weight_map"]
                return cls({tensor: index.parent / file for tensor, file in places.items()})
            if (whole := file_of(name, _WHOLE, revision, local_files_only=True)) is not None:
                with safe_open(whole, "pt") as tensors:
                    return cls(dict.fromkeys(tensors.keys(), whole))
        except (OSError, SafetensorError):
            return None
        return None

    @classmethod
    def in_folder(cls, folder: Path) -> "BaseFiles":
        """All that the safetensors files of a folder hold."""
        places: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                places |= dict.fromkeys(tensors.keys(), file)
        return cls(places)

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name, in a file that is here."""
        return name in self.places and self.places[str(name)].is_file()

    def read(self, name: str) -> Tensor:
        """One tensor, onto the CPU."""
        with safe_open(self.places[name], "pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
            return tensor


def file_of(
    name: str, file: str, revision: str | None, local_files_only: bool = False
) -> Path | None:
    """A file of a folder, or the local copy of one on the Hub; None if it is not there.

    Raises:
        OSError, ValueError: the Hub refuses, or `name` is neither a folder nor a Hub name.
    """
    from transformers.utils.hub import cached_file

    found = cached_file(
        name,
        file,
        revision=revision,
        local_files_only=local_files_only,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None
