"""Headers of safetensors files that anybody may have written, read without torch."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from controlllm.common.errors import CheckpointError

__all__ = ["Header", "broken", "read_header", "read_scalars", "require_file"]


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
    metadata, entries, _ = _read(path)
    shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    return Header(metadata, shapes, {name: _bytes(entry) for name, entry in entries.items()})


def read_scalars(path: Path, ending: str) -> dict[str, float]:
    """The tensors of one floating-point number whose names end like that, by name.

    Raises:
        CheckpointError: if the file is missing, broken or truncated.
    """
    _, entries, begin = _read(path)
    found = {}
    with path.open("rb") as stream:
        for name, entry in entries.items():
            read = _NUMBERS.get(entry["dtype"])
            if name.endswith(ending) and prod(entry["shape"]) == 1 and read is not None:
                stream.seek(begin + entry["data_offsets"][0])
                found[name] = read(stream.read(_bytes(entry)))
    return found


_NUMBERS: dict[str, Callable[[bytes], float]] = {
    "F64": lambda data: float(struct.unpack("<d", data)[0]),
    "F32": lambda data: float(struct.unpack("<f", data)[0]),
    "F16": lambda data: float(struct.unpack("<e", data)[0]),
    "BF16": lambda data: float(struct.unpack("<f", b"\0\0" + data)[0]),
}
"""How the bytes of a type, by its name in the format, become a number."""


def _read(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]], int]:
    """What a writer noted, what stands there of each tensor, and where their bytes begin."""
    require_file(path)
    try:
        with safe_open(path, "np") as tensors:  # checks all of the header before it is parsed here
            metadata = dict(tensors.metadata() or {})
        with path.open("rb") as stream:  # 8 bytes of little-endian length, then JSON
            length = int.from_bytes(stream.read(8), "little")
            values = json.loads(stream.read(length))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise broken(path, error) from error
    values.pop("__metadata__", None)
    return metadata, values, 8 + length


def _bytes(entry: dict[str, Any]) -> int:
    start, end = entry["data_offsets"]
    return int(end - start)


def require_file(path: Path) -> None:
    """Check that a file is there, and is one: a pipe would be waited for (CheckpointError)."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, or no file; download or export it again.")


def broken(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that is no whole safetensors file."""
    return CheckpointError(
        f"{path} is broken or truncated, or no safetensors file ({error}); copy, download or "
        "export it again."
    )
