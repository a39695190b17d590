"""Safetensors files that anybody may have written: their headers, tensors, and numbers."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from controlllm.common.errors import CheckpointError
from controlllm.common.tensors import own_part

__all__ = ["Header", "read_header", "read_tensors", "require_file", "require_numbers"]


@dataclass(frozen=True)
class Header:
    """What a file says of its tensors.

    Attributes:
        metadata: texts that its writer noted.
        shapes: of each tensor, by name.
        sizes: its bytes.
    """

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    sizes: dict[str, int]


def read_header(path: Path) -> Header:
    """The header of a file, without its tensors.

    Its length (at most 100 MB), names, shapes and offsets are checked against the file's size.

    Raises:
        CheckpointError: if it is missing, broken or truncated.
    """
    require_file(path)
    try:
        with safe_open(path, "pt") as tensors:  # checks all of the header before it is parsed here
            metadata = dict(tensors.metadata() or {})
        with path.open("rb") as stream:  # 8 bytes of little-endian length, then JSON
            values = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise _broken(path, error) from error
    entries: dict[str, dict[str, Any]] = {k: v for k, v in values.items() if k != "__metadata__"}
    return Header(
        metadata,
        {name: tuple(entry["shape"]) for name, entry in entries.items()},
        {
            name: entry["data_offsets"][1] - entry["data_offsets"][0]
            for name, entry in entries.items()
        },
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, mapped onto the CPU.

    Raises:
        CheckpointError: if it is missing, broken or truncated.
    """
    from safetensors.torch import load_file

    require_file(path)
    try:
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise _broken(path, error) from error


def require_numbers(
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], where: str
) -> None:
    """Check that no value is infinite or not a number.

    Integers and 8-bit floats (quantised) pass.

    Raises:
        CheckpointError: with the name of the first that holds one.
    """
    items = tensors.items() if isinstance(tensors, Mapping) else tensors
    for name, tensor in items:
        if not _is_finite(tensor):
            raise CheckpointError(
                f"{where}: {name} holds values that are not numbers (nan or infinite); whatever "
                "wrote it went wrong. Use an earlier checkpoint."
            )


_CHECKED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def _is_finite(tensor: Tensor) -> bool:
    own = own_part(tensor)
    if own.dtype not in _CHECKED or own.is_meta or not own.numel():
        return True
    lowest, highest = torch.aminmax(own)  # one pass, nothing is allocated; nan goes through
    return bool(torch.isfinite(lowest) & torch.isfinite(highest))


def require_file(path: Path) -> None:
    """Check that a file is there, and is one: a pipe would be waited for (CheckpointError)."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, or no file; download or export it again.")


def _broken(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is broken or truncated, or no safetensors file ({error}); copy, download or "
        "export it again."
    )
