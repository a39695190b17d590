"""Tensors of safetensors files that anybody may have written, and their check."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from controlllm.common.errors import CheckpointError
from controlllm.common.storage.tensor_headers import broken, require_file
from controlllm.common.tensors import own_part

__all__ = ["read_tensors", "require_numbers"]


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
        raise broken(path, error) from error


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
        own = own_part(tensor.detach())
        if own.dtype not in _CHECKED or own.is_meta or not own.numel():
            continue
        lowest, highest = torch.aminmax(own)  # one pass, nothing is allocated; nan goes through
        if not torch.isfinite(lowest) & torch.isfinite(highest):
            raise CheckpointError(
                f"{where}: {name} holds values that are not numbers (nan or infinite); whatever "
                "wrote it went wrong. Use an earlier checkpoint."
            )


_CHECKED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
