"""Nested Python state to JSON and safetensors and back, without pickles.

Optimizer, loader and random states are nests of dicts, lists, tuples, tensors, arrays and plain
values. `pack` takes the tensors out and leaves plain JSON with a mark wherever JSON cannot say what
stood there; `unpack` puts it together again, types included. Anything else is refused, never
pickled: loading a checkpoint can therefore run no code.

    {"step": tensor(3.), 0: (1, 2)}
        ->  {"$dict": [["step", {"$tensor": "0"}], [0, {"$tuple": [1, 2]}]]}, {"0": tensor(3.)}
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from controlllm.common.errors import CheckpointError

__all__ = ["capture_rng", "pack", "restore_rng", "unpack"]

_PLAIN = (str, int, float, bool, type(None))


def pack(value: Any, name: str = "state") -> tuple[Any, dict[str, Tensor]]:
    """Split a nested value into JSON and tensors.

    Args:
        value: dicts (with plain keys), lists, tuples, tensors, numpy arrays, strings, numbers,
            booleans and None.
        name: what the value is called in errors.

    Returns:
        The JSON value, and the tensors by their marks ("0", "1", ...).

    Raises:
        CheckpointError: for anything else, with its place and type.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(value, name, tensors), tensors


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Put together again what `pack` split.

    Raises:
        CheckpointError: if a tensor is missing or a mark is unknown.
    """
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    mark, inner = next(iter(value.items()), ("", None))
    if len(value) != 1 or not mark.startswith("$"):
        return {key: unpack(item, tensors) for key, item in value.items()}
    return _unpack_mark(mark, inner, tensors)


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        key = str(len(tensors))
        tensors[key] = torch.as_tensor(value).detach()
        return {"$tensor" if isinstance(value, Tensor) else "$array": key}
    if isinstance(value, dict):
        return _pack_dict(value, place, tensors)
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{place}[{i}]", tensors) for i, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, _PLAIN):
        return value
    raise CheckpointError(
        f"{place} is a {type(value).__name__}, which a checkpoint does not hold; "
        "give it as dicts, lists, tensors, numbers and strings."
    )


def _pack_dict(value: dict[Any, Any], place: str, tensors: dict[str, Tensor]) -> Any:
    """A dict as JSON where its keys allow it, else as a list of pairs."""
    for key in value:
        if not isinstance(key, _PLAIN):
            raise CheckpointError(f"{place} has a key of type {type(key).__name__}: {key!r}.")
    pairs = [(key, _pack(item, f"{place}.{key}", tensors)) for key, item in value.items()]
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return dict(pairs)
    return {"$dict": [list(pair) for pair in pairs]}


def _unpack_mark(mark: str, inner: Any, tensors: dict[str, Tensor]) -> Any:
    if mark == "$dict" and isinstance(inner, list):
        pairs = (pair for pair in inner if isinstance(pair, list) and len(pair) == 2)
        made = {key: unpack(item, tensors) for key, item in pairs if isinstance(key, _PLAIN)}
        if len(made) == len(inner):
            return made
    if mark == "$tuple" and isinstance(inner, list):
        return tuple(unpack(item, tensors) for item in inner)
    known = isinstance(inner, str) and inner in tensors
    if mark not in ("$tensor", "$array") or not known:
        raise CheckpointError(
            f"the state refers to {mark} {inner!r}, which the file lacks; use another checkpoint."
        )
    return tensors[inner] if mark == "$tensor" else tensors[inner].numpy()


def capture_rng() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators, on every device in use."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_rng(states: dict[str, Any]) -> None:
    """Set every generator to what `capture_rng` returned; devices absent here are left alone."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"].cpu())
    for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state.cpu(), device)
