"""What works with what: the table that runs are checked by.

`WAYS` says which back end trains under which strategy; `REFUSED` which settings do not go together,
why, and what does instead. `check_support` refuses a run before anything is loaded; `support` makes
a page of it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.packages.quantizers import QUANTIZERS, is_shared_by
from controlllm.common.registry import Registry
from controlllm.train.config.methods import METHODS
from controlllm.train.config.optimizers import OPTIMIZERS
from controlllm.train.config.registries import LOSS_TYPES, OWN_BACKENDS
from controlllm.train.config.strategies import STRATEGIES

__all__ = ["REFUSED", "WAYS", "Refused", "Setting", "check_quantised", "check_support"]

WAYS: dict[tuple[str, str], str] = {
    (backend, name): known
    for backend in OWN_BACKENDS
    for name in STRATEGIES.names()
    if (known := STRATEGIES.get(name).backends.get(backend))
}
"""(training.backend, parallel.strategy) -> what is known of it; others of ours are refused."""


@dataclass(frozen=True)
class Setting:
    """A setting of the run that has one of some values."""

    path: str  # its dotted name
    values: Callable[[], Sequence[Any]] | None = None
    """Gives what it has to be; None = anything but unset, off or 1."""
    name: str = ""  # what users call it, if its value follows from several of theirs

    def of(self, run: Any) -> Any:
        """Its value in a run."""
        return reduce(getattr, self.path.split("."), run)

    def is_met(self, run: Any) -> bool:
        """Whether a run has it so."""
        value = self.of(run)
        if self.values is not None:
            return value in self.values()
        return value if isinstance(value, bool) else value not in (None, 1)

    def __str__(self) -> str:
        if self.values is None:
            return f"`{self.name or self.path}`"
        return f"`{self.path}`: {' or '.join(f'`{value}`' for value in self.values())}"


@dataclass(frozen=True)
class Refused:
    """Two settings that cannot be combined."""

    one: Setting
    other: Setting
    why: str  # a sentence without its full stop
    instead: str  # what to do, the nearest that works


def _those(path: str, registry: Registry[Any], has: Callable[[Any], bool]) -> Setting:
    """A setting whose value names something for which `has` is true; names may join later."""
    return Setting(path, lambda: [n for n in registry.names() if has(registry.get(n))])


_TRAINS_BASE = _those("method", METHODS, lambda method: method.trains_base)
_ASKS_BASE = _those("method", METHODS, lambda method: method.asks_base)
_BRINGS_ADAPTERS = _those("method", METHODS, lambda method: method.adapters is not None)
_BY_ZERO = _those("parallel.strategy", STRATEGIES, lambda way: way.by_deepspeed)
_BY_ZERO3 = _those(
    "parallel.strategy", STRATEGIES, lambda way: way.by_deepspeed and way.cuts_weights
)
_NEEDS_ROWS = _those("training.optim", OPTIMIZERS, lambda optimizer: optimizer.needs_rows)
_NOT_BY_ZERO = _those(
    "model.quantize_base",
    QUANTIZERS,
    lambda one: not any(one.shares(way) for way in STRATEGIES.things() if way.by_deepspeed),
)
_TENSOR = Setting("parallel.tensor_size")
_QUANTISED = Setting("model.quantize_base")
_CHUNKED = Setting("training.loss_chunk_size")
_COMPILED = Setting("training.torch_compile")
_LIGER = Setting("training.use_liger_kernel")
_WRITES = Setting("evaluation.generation.enabled", name="evaluation.generation.sets")
_FUSED = Setting(
    "training.fuses_loss", name="training.liger_kernel_config.fused_linear_cross_entropy"
)
_WEIGHTED = Setting(
    "training.loss_type", lambda: [name for name in LOSS_TYPES.names() if name != "ce"]
)

_NO_PLAN = "the model's plan does not say how the matrices of adapters are cut"
_BY_ROWS = "tensor parallelism cuts matrices by columns, and codes with scales are cut by rows only"
_ALL_LOGITS = "its loss needs all logits of base and model"
_ALONE = "set parallel.tensor_size=1"
_UNTESTED = "the two have not been tested together"
_UNFUSED = "set training.liger_kernel_config={fused_linear_cross_entropy: false}"
_FSDP, _FSDP_OR_ZERO2 = "take parallel.strategy=fsdp", "take parallel.strategy=fsdp or zero2"

REFUSED = (
    Refused(_TENSOR, _QUANTISED, _BY_ROWS, _ALONE),
    Refused(_TENSOR, _NEEDS_ROWS, _BY_ROWS, "set training.optim=adamw"),
    Refused(
        _TENSOR,
        _LIGER,
        "Liger's kernels cannot compute with matrices that are cut",
        "leave use_liger_kernel out",
    ),
    Refused(_TENSOR, Setting("peft.type"), _NO_PLAN, _ALONE),
    Refused(_TENSOR, _BRINGS_ADAPTERS, _NO_PLAN, _ALONE),
    Refused(_TENSOR, _BY_ZERO, "DeepSpeed would cut the weights a second time", _FSDP),
    Refused(
        _NEEDS_ROWS,
        _BY_ZERO,
        "ZeRO cuts all weights as one flat list, so that no process holds the whole rows of a "
        "scale",
        "set training.optim=adamw (ZeRO has cut its moments already), or take "
        "parallel.strategy=fsdp",
    ),
    Refused(
        _QUANTISED,
        Setting("continue_from"),
        "the stages before are kept as they were, and numbers of a quantised base would be held "
        "against theirs",
        "leave it out",
    ),
    Refused(
        _QUANTISED,
        _BRINGS_ADAPTERS,
        "method=lora has been tested on an unquantised base only",
        "set method=control with peft.type=lora, for adapters beside copies",
    ),
    Refused(
        _QUANTISED,
        _TRAINS_BASE,
        "it trains weights of the base, and what trains is not quantised",
        "set method=control or stack",
    ),
    Refused(_NOT_BY_ZERO, _BY_ZERO, _UNTESTED, "set model.quantize_base=int8 or nf4"),
    Refused(
        _CHUNKED,
        _BY_ZERO3,
        "the head's weight is used outside the head, where ZeRO-3 has not gathered it",
        _FSDP_OR_ZERO2,
    ),
    Refused(_CHUNKED, _ASKS_BASE, _ALL_LOGITS, "leave it out"),
    Refused(_FUSED, _ASKS_BASE, _ALL_LOGITS, _UNFUSED),
    Refused(_FUSED, _WEIGHTED, "the kernel sums cross-entropies without weights", _UNFUSED),
    Refused(
        _FUSED, _BY_ZERO3, "Liger's fused loss needs the head whole, which ZeRO-3 cuts", _UNFUSED
    ),
    Refused(
        _QUANTISED,
        Setting("peft.type", lambda: ["dora"]),
        "DoRA computes with the base's weights",
        "set peft.type=lora or oft",
    ),
    Refused(
        Setting("expansion.interpolator", lambda: ["proj"]),
        _BY_ZERO3,
        "its matrix is used outside its forward pass, where ZeRO-3 has not gathered it",
        _FSDP_OR_ZERO2,
    ),
    Refused(_COMPILED, _BY_ZERO, _UNTESTED, _FSDP),
    Refused(_COMPILED, _LIGER, "the two have not been tried together", "leave one of them out"),
    Refused(
        _CHUNKED,
        _FUSED,
        "both compute the logits in parts",
        f"leave loss_chunk_size out, or {_UNFUSED}",
    ),
    Refused(
        Setting("debug.anomaly"),
        _COMPILED,
        "it looks at single modules, and torch.compile joins them into one",
        "switch one of them off",
    ),
    Refused(
        _WRITES,
        _COMPILED,
        "the many lengths of texts use up what torch compiles of a block, so that training would "
        "go on uncompiled",
        "leave torch_compile out",
    ),
    Refused(
        Setting("training.worst_case_first"),
        _BY_ZERO,
        "DeepSpeed makes its engine after that pass",
        "leave it out, or take parallel.strategy=fsdp",
    ),
)
"""Checked in this order, after `WAYS`."""


def check_support(run: Any) -> None:
    """Check that the settings of a run config can be combined.

    Raises:
        ConfigError: with the settings, the reason, and the nearest that works.
    """
    backend, strategy = run.training.backend, run.parallel.strategy
    way = STRATEGIES.get(strategy)
    # A back end of a user's own gets the model sharded; it would have to make an engine itself.
    fits = (backend, strategy) in WAYS or (backend not in OWN_BACKENDS and not way.by_deepspeed)
    if not fits:
        others = [name for name, one in WAYS if one == strategy]
        raise ConfigError(
            f"parallel.strategy={strategy} does not go together with training.backend={backend}; "
            f"set training.backend={' or '.join(others)}, or take parallel.strategy=fsdp."
        )
    for row in REFUSED:
        if row.one.is_met(run) and row.other.is_met(run):
            one, other = (f"{s.name or s.path}={_shown(s.of(run))}" for s in (row.one, row.other))
            raise ConfigError(f"{one} does not go together with {other}: {row.why}; {row.instead}.")


def check_quantised(kinds: Collection[str], strategy: str) -> None:
    """Check that several processes can share a base that is quantised so (`quantised_kind`).

    Raises:
        ConfigError: with the reason, and the nearest that works.
    """
    way = STRATEGIES.get(strategy)
    wrong = [kind for kind in sorted(kinds) if not is_shared_by(kind, way)]
    if wrong:
        why = (
            "that was never tested" if way.by_deepspeed else "they can be neither cut nor gathered"
        )
        raise ConfigError(
            f"parallel.strategy={strategy} cannot share weights that are quantised as "
            f"{', '.join(wrong)}: {why}. Load the base in full with model.quantize_base=int8 or "
            "nf4, which every strategy can share, or train in one process."
        )


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
