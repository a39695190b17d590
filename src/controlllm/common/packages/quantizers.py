"""The ways to hold a frozen base in few bits, each with all that is known of it.

| name | a weight takes | made |
|---|---|---|
| `int8` | 8 bits; 32 for each row | by torchao, of a model that is there |
| `nf4` | 4 bits; 16 for each block of 64 | likewise |
| `bnb_int8`, `bnb_nf4`, `bnb_nf4_double` | see `bitsandbytes` | as the base is loaded |

>>> QUANTIZERS.get("nf4").bytes(1, 4096)
2176
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from controlllm.common.packages.bitsandbytes import BNB_KINDS, packed_bytes
from controlllm.common.quiet import require_package
from controlllm.common.registry import Registry

__all__ = ["COPY_KINDS", "NF4_BLOCK", "QUANTIZERS", "READ_ONLY", "Quantizer", "is_shared_by"]

NF4_BLOCK = 64
"""Neighbours that share a scale in nf4."""

COPY_KINDS = ("int8",)
"""How copies can be held where nothing trains (`expansion.surgery.int8_copies`)."""

Shares = Callable[[Any], bool]


@dataclass(frozen=True)
class Quantizer:
    """One way to hold weights in few bits.

    Attributes:
        shape: (rows, columns) of a weight -> shape of the bytes that take its place and are cut
            where processes share it.
        bytes: (rows, columns) of a weight -> all bytes that it takes.
        shares: whether several processes can share such weights by a strategy
            (`train.config.strategies.Strategy`).
        require: imports what it needs; gets the setting, for the message (ConfigError).
        at_load: whether weights are quantised as they are loaded, or else once the model is there.
    """

    shape: Callable[[int, int], tuple[int, int]]
    bytes: Callable[[int, int], int]
    shares: Shares
    require: Callable[[str], Any]
    at_load: bool = False

    def beside(self, rows: int, columns: int) -> int:
        """Bytes that every process keeps whole beside those of `shape`."""
        return self.bytes(rows, columns) - math.prod(self.shape(rows, columns))


def _by_torch(strategy: Any) -> bool:
    return not strategy.by_deepspeed


def _by_none(strategy: Any) -> bool:
    return False


def _in_rows(width: Callable[[int], int]) -> Quantizer:
    """Rows of bytes, codes first and then their scales: cut like any other weight."""
    return Quantizer(
        shape=lambda rows, columns: (rows, width(columns)),
        bytes=lambda rows, columns: rows * width(columns),
        shares=lambda strategy: True,
        require=partial(require_package, "torchao.quantization"),
    )


def _bnb_shape(kind: str, rows: int, columns: int) -> tuple[int, int]:
    return (rows, columns) if kind == "bnb_int8" else (-(-rows * columns // 2), 1)


QUANTIZERS: Registry[Quantizer] = Registry("model.quantize_base")
"""Quantizers by the name used in the run config."""

QUANTIZERS.register("int8")(_in_rows(lambda columns: columns + 4))
QUANTIZERS.register("nf4")(
    _in_rows(lambda columns: -(-columns // NF4_BLOCK) * (NF4_BLOCK // 2 + 2))
)
for _kind in BNB_KINDS:
    QUANTIZERS.register(_kind)(
        Quantizer(
            shape=partial(_bnb_shape, _kind),
            bytes=partial(packed_bytes, kind=_kind),
            shares=_by_none if _kind == "bnb_int8" else _by_torch,
            require=partial(require_package, "bitsandbytes"),
            at_load=True,
        )
    )

READ_ONLY: dict[str, Shares] = {
    "bnb_fp4": _by_torch,
    "bnb_fp4_double": _by_torch,
    "torchao": _by_none,
}
"""What a base may come quantised as and we do not make -> as `Quantizer.shares`."""


def is_shared_by(kind: str, strategy: Any) -> bool:
    """Whether several processes can share weights of a kind, as `quantised_kind` names it."""
    name = kind.split()[0]  # torchao's have their class behind it.
    if name in QUANTIZERS.names():
        return QUANTIZERS.get(name).shares(strategy)
    return READ_ONLY.get(name, _by_none)(strategy)
