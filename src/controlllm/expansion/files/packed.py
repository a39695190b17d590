"""A sidecar's matrices in few bits: their differences from what they began as.

| in the file | what it is |
|---|---|
| `NAME.codes`, `NAME.scales` | copy minus twin, row by row (`few_bits`) |
| `NAME.added` | rows that the twin does not have (added tokens), whole |
| `NAME` | anything else, whole: vectors, interpolators, adapters, what has no frozen twin |

Loading adds the difference to the twin (`surgery.twins`), in the twin's type: such a file can be
read beside its base only. `sidecar_config.json` says which names are packed (`records`); sizes and
types are held against the model before anything is unpacked.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from controlllm.common.errors import CheckpointError, ConfigError, ModelError
from controlllm.common.registry import few
from controlllm.common.storage.tensor_files import require_numbers
from controlllm.common.tensors import require_same
from controlllm.expansion.files.few_bits import (
    BITS,
    SCALES,
    code_bytes,
    pack,
    packed_bytes,
    unpack,
)
from controlllm.expansion.files.records import PackedRecord
from controlllm.expansion.surgery.twins import twins

__all__ = [
    "Packed",
    "check_bits",
    "has_rows",
    "pack_tensors",
    "packed_bits",
    "put_packed",
    "require_whole",
    "stored_bytes",
]

log = logging.getLogger(__name__)

_NOTE = "_packed"
_CHUNK = 1 << 22
"""Numbers that are worked on at once: float32 of a whole table would take much memory."""


@dataclass(frozen=True)
class Packed:
    """A sidecar in few bits.

    Attributes:
        record: what its config says of it.
        tensors: its tensors by their names in the file.
    """

    record: PackedRecord
    tensors: Mapping[str, Tensor]

    def codes_of(self, name: str) -> tuple[Tensor, Tensor]:
        """Codes and scales of a matrix."""
        return self.tensors[f"{name}.codes"], self.tensors[f"{name}.scales"]


def check_bits(bits: int | None) -> None:
    """Check a number of bits (ConfigError); None is whole."""
    if bits is not None and (isinstance(bits, bool) or bits not in BITS):
        raise ConfigError(
            f"bits={bits!r}; allowed: {', '.join(map(str, BITS))}, or null for whole tensors."
        )


def packed_bits(model: PreTrainedModel) -> int | None:
    """In how many bits the sidecar was that a model was loaded from; None of a whole one."""
    known: Packed | None = vars(model).get(_NOTE)
    return None if known is None else known.record["bits"]


@torch.no_grad()
def pack_tensors(model: Any, tensors: Mapping[str, Tensor], bits: int) -> Packed:
    """Write the matrices of a sidecar in few bits.

    What was loaded in as many bits and has not changed since keeps its codes: a sidecar that is
    exported again is the same, not rounded twice.

    Args:
        model: the expanded model.
        tensors: its trained tensors (`sidecar_tensors`).
        bits: 1, 2 or 4.

    Raises:
        ModelError: the base is quantised, or no matrix has a frozen twin.
        CheckpointError: a value is not finite.
    """
    known: Packed | None = vars(model).get(_NOTE)
    if kinds := model.config.base.get("quantised"):
        log.warning(
            "This model was trained beside its base in %s: its differences hold what that rounded, "
            "and few bits are spent on it.",
            ", ".join(kinds),
        )
    beside = _packable(twins(model, tensors), tensors, bits)
    if not beside:
        raise ModelError(
            f"bits={bits}: no trained matrix of this model has a frozen one that it began as; "
            "leave bits out."
        )
    require_numbers({name: tensors[name] for name in beside}, "the trained model")
    made = {name: tensor for name, tensor in tensors.items() if name not in beside}
    lost = total = 0.0
    for name, twin in beside.items():
        copy, rows = tensors[name].detach().to(twin.device), twin.shape[0]
        known_rows = copy[:rows]
        saved = _unchanged(known, name, known_rows, twin, bits) or _pack(known_rows, twin, bits)
        made |= {f"{name}.codes": saved[0], f"{name}.scales": saved[1]}
        if rows < copy.shape[0]:
            made[f"{name}.added"] = copy[rows:]
        total += _squares(known_rows, twin)
        lost += _squares(known_rows, _restore(twin, saved, bits, copy.dtype))
    columns = {name: twin.shape[-1] for name, twin in beside.items()}
    dtype = str(tensors[next(iter(columns))].dtype).removeprefix("torch.")
    log.info(
        "%d bits a number hold %.1f %% of what %d matrices differ from the base by (squared)",
        *(bits, 100 * (1 - lost / total) if total else 100.0, len(columns)),
    )
    record = {"bits": bits, "dtype": dtype, "columns": columns}
    return Packed(cast(PackedRecord, record), made)


@torch.no_grad()
def put_packed(model: Any, own: Mapping[str, Tensor], packed: Packed, where: str) -> None:
    """Put a sidecar in few bits into a model that was expanded for it, in place.

    Args:
        model: the expanded model, whose frozen weights are the base's.
        own: its trained tensors (`sidecar_tensors`).
        packed: the sidecar.
        where: what it was read from, for messages.

    Raises:
        CheckpointError: a name, size or type is not what the model's own tensors ask for, or a
            number is not finite.
        ModelError: the base is quantised.
    """
    bits, columns = packed.record["bits"], packed.record["columns"]
    beside = {name: twin for name, twin in twins(model, own).items() if name in columns}
    _check(own, beside, packed, where)
    for name, tensor in own.items():
        if name not in columns:
            tensor.copy_(packed.tensors[name])
            continue
        twin = beside[name]
        tensor[: len(twin)].copy_(_restore(twin, packed.codes_of(name), bits, tensor.dtype))
        if (added := packed.tensors.get(f"{name}.added")) is not None:
            tensor[len(twin) :].copy_(added)
    require_numbers({name: own[name] for name in columns}, where)
    codes = {f"{name}.{end}" for name in columns for end in ("codes", "scales")}
    vars(model)[_NOTE] = Packed(packed.record, {name: packed.tensors[name] for name in codes})


def has_rows(tensors: Mapping[str, Tensor], rows: int, packed: Packed | None) -> bool:
    """Whether a sidecar holds a table of so many rows, before a model grows to as many."""
    sides = {side for tensor in tensors.values() if tensor.numel() for side in tensor.shape}
    for name in packed.record["columns"] if packed is not None else ():
        codes, added = tensors.get(f"{name}.codes"), tensors.get(f"{name}.added")
        if codes is not None and added is not None and codes.ndim and codes.numel():
            sides.add(codes.shape[0] + (added.shape[0] if added.numel() else 0))
    return rows in sides


def require_whole(values: Mapping[str, Any], where: object) -> None:
    """Refuse a sidecar in few bits where it would be read without its base (CheckpointError)."""
    if "packed" in values:
        raise CheckpointError(
            f"{where} is a sidecar in {values['packed']['bits']} bits, which is read beside its "
            "base only: export it whole (`controlllm export ... --form sidecar` from the run), or "
            "load it by load_sidecar()."
        )


def stored_bytes(model: Any, tensors: Mapping[str, Tensor], bits: int | None) -> int:
    """The bytes of a sidecar's tensors, from shapes alone: they may lie on the meta device.

    Args:
        model: the expanded model.
        tensors: its trained tensors (`sidecar_tensors`).
        bits: 1, 2 or 4; None = whole.
    """
    if bits is None:
        return sum(tensor.nbytes for tensor in tensors.values())
    beside = _packable(twins(model, tensors), tensors, bits)
    packed = sum(packed_bytes(twin.shape, bits) for twin in beside.values())
    whole = sum(tensor.nbytes for tensor in tensors.values())
    return whole + packed - sum(t.numel() * tensors[n].element_size() for n, t in beside.items())


def _pack(copy: Tensor, twin: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes (..., K) and scales (...) of a copy (..., C) minus its twin."""
    made = [pack(e.float() - t.float(), bits) for e, t in _rows(copy, twin)]
    codes, scales = (torch.cat(parts) for parts in zip(*made, strict=True))
    return codes.reshape(*copy.shape[:-1], -1), scales.reshape(copy.shape[:-1])


def _restore(twin: Tensor, saved: tuple[Tensor, Tensor], bits: int, dtype: torch.dtype) -> Tensor:
    """The copy (..., C) of a twin that codes and scales make."""
    codes, scales = (tensor.to(twin.device) for tensor in saved)
    width = twin.shape[-1]
    rows = _rows(twin, codes, scales[..., None])
    made = [(t.float() + unpack(c, s[:, 0], bits, width)).to(dtype) for t, c, s in rows]
    return torch.cat(made).reshape(twin.shape)


def _unchanged(
    known: Packed | None, name: str, copy: Tensor, twin: Tensor, bits: int
) -> tuple[Tensor, Tensor] | None:
    """The codes and scales that a copy was loaded from, where those still give it."""
    if known is None or known.record["bits"] != bits or name not in known.record["columns"]:
        return None
    saved = known.codes_of(name)
    same = saved[1].shape == copy.shape[:-1]
    return saved if same and torch.equal(_restore(twin, saved, bits, copy.dtype), copy) else None


def _rows(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows (R, ...) of tensors (..., C) at a time, so that float32 of them takes little."""
    size = max(1, _CHUNK // first.shape[-1])
    flat = (tensor.flatten(0, -2).split(size) for tensor in (first, *others))
    yield from zip(*flat, strict=True)


def _squares(one: Tensor, other: Tensor) -> float:
    """The sum of squared differences."""
    rows = _rows(one, other)
    return sum(float((a.float() - b.float()).square().sum()) for a, b in rows)


def _packable(
    beside: Mapping[str, Tensor], tensors: Mapping[str, Tensor], bits: int
) -> dict[str, Tensor]:
    """The twins of those matrices that codes make smaller."""
    return {
        name: twin
        for name, twin in beside.items()
        if packed_bytes(twin.shape, bits) < twin.numel() * tensors[name].element_size()
    }


def _check(
    own: Mapping[str, Tensor], beside: Mapping[str, Tensor], packed: Packed, where: str
) -> None:
    """Hold a stranger's names, sizes and types against a model (CheckpointError)."""
    bits, columns = packed.record["bits"], packed.record["columns"]
    if unknown := sorted(columns.keys() - beside.keys()):
        raise CheckpointError(
            f"{where}: packed.columns names {few(unknown)}, which are no copies of frozen matrices "
            "of this model; set the model up as it was when it was saved."
        )
    wanted: dict[str, tuple[int, ...]] = {}
    for name, tensor in own.items():
        if name not in columns:
            wanted[name] = tuple(tensor.shape)
            continue
        *leading, width = beside[name].shape
        if columns[name] != width:
            raise CheckpointError(
                f"{where}: packed.columns says {columns[name]} of {name}, and it has {width} in "
                "the model; set the model up as it was when it was saved."
            )
        wanted[f"{name}.codes"] = (*leading, code_bytes(width, bits))
        wanted[f"{name}.scales"] = tuple(leading)
        if (added := tensor.shape[0] - leading[0]) > 0:
            wanted[f"{name}.added"] = (added, *tensor.shape[1:])
    require_same(wanted, {name: tensor.shape for name, tensor in packed.tensors.items()}, where)
    types = {"codes": torch.uint8, "scales": SCALES}
    for name in columns:
        for end, dtype in types.items():
            if (found := packed.tensors[f"{name}.{end}"].dtype) is not dtype:
                raise CheckpointError(
                    f"{where}: {name}.{end} is of {found}, and such a file has {dtype}; export it "
                    "again."
                )
