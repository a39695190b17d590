"""What works with what: the table that runs are checked by, and the page that is made of it.

`WAYS` says which back end trains under which strategy; `REFUSED` which settings do not go together,
why, and what does instead. `check_support` refuses a run before anything is loaded; `page` is the
part of docs/support.md between its marks (`python -m controlllm.train.config.support` writes it).
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.packages.bitsandbytes import BNB_KINDS
from controlllm.train.config.methods import METHODS
from controlllm.train.config.strategies import STRATEGIES

__all__ = [
    "QUANTISED",
    "REFUSED",
    "WAYS",
    "Refused",
    "Setting",
    "check_quantised",
    "check_support",
    "page",
]

WAYS: dict[tuple[str, str], str] = {
    (backend, name): STRATEGIES.get(name).backends[backend]
    for backend in ("native", "hf")
    for name in STRATEGIES.names()
    if backend in STRATEGIES.get(name).backends
}
"""(training.backend, parallel.strategy) -> what is known of it; anything else is refused."""

_EVERY = tuple(STRATEGIES.names())
_ZERO = tuple(name for name in _EVERY if STRATEGIES.get(name).by_deepspeed)
_BY_TORCH = tuple(name for name in _EVERY if name not in _ZERO)
QUANTISED: dict[str, tuple[str, ...]] = {
    "int8": _EVERY,
    "nf4": _EVERY,
    "bnb_nf4": _BY_TORCH,
    "bnb_fp4": _BY_TORCH,
    "bnb_int8": (),
    "torchao": (),
}
"""How a kind that a base is quantised as begins -> the strategies by which processes share it."""

MARKS = ("<!-- made by `python -m controlllm.train.config.support` -->", "<!-- end -->")


@dataclass(frozen=True)
class Setting:
    """A setting of the run that has one of some values.

    Attributes:
        path: its dotted name.
        values: what it has to be; none = anything but unset, off or 1.
        name: what users call it, if its value follows from several of theirs.
    """

    path: str
    values: tuple[Any, ...] = ()
    name: str = ""

    def of(self, run: Any) -> Any:
        """Its value in a run."""
        return reduce(getattr, self.path.split("."), run)

    def is_met(self, run: Any) -> bool:
        """Whether a run has it so."""
        value = self.of(run)
        if self.values:
            return value in self.values
        return value if isinstance(value, bool) else value not in (None, 1)

    def __str__(self) -> str:
        if not self.values:
            return f"`{self.name or self.path}`"
        return f"`{self.path}`: {' or '.join(f'`{value}`' for value in self.values)}"


@dataclass(frozen=True)
class Refused:
    """Two settings that do not go together.

    Attributes:
        one: a setting.
        other: another one.
        why: a sentence without its full stop.
        instead: what to do, the nearest that works.
    """

    one: Setting
    other: Setting
    why: str
    instead: str


_TRAIN_BASE = tuple(name for name in METHODS.names() if METHODS.get(name).trains_base)
_BY_ZERO = Setting("parallel.strategy", _ZERO)
_BY_ZERO3 = Setting("parallel.strategy", ("zero3",))
_LOW_BIT = Setting("training.optimizer", ("adamw_8bit", "adamw_4bit", "adamw_fp8"))
_TENSOR = Setting("parallel.tensor_size")

_FUSED = Setting(
    "training.fuses_loss", name="training.liger_kernel_config.fused_linear_cross_entropy"
)
_NO_PLAN = "the model's plan does not say how the matrices of adapters are cut"

REFUSED = (
    Refused(
        _TENSOR,
        Setting("model.quantize_base"),
        "matrices are cut by columns too, which rows of codes and scales cannot follow",
        "set parallel.tensor_size=1",
    ),
    Refused(
        _TENSOR,
        _LOW_BIT,
        "matrices are cut by columns too, which rows of codes and scales cannot follow",
        "set training.optimizer=adamw",
    ),
    Refused(
        _TENSOR,
        Setting("training.use_liger_kernel"),
        "its kernels know no matrices that are cut",
        "leave use_liger_kernel out",
    ),
    Refused(_TENSOR, Setting("peft.type"), _NO_PLAN, "set parallel.tensor_size=1"),
    Refused(_TENSOR, Setting("method", ("lora",)), _NO_PLAN, "set parallel.tensor_size=1"),
    Refused(
        _TENSOR,
        _BY_ZERO,
        "DeepSpeed would cut the weights a second time",
        "take parallel.strategy=fsdp",
    ),
    Refused(
        _LOW_BIT,
        _BY_ZERO,
        "ZeRO's flat parts of all weights have no rows that a scale belongs to",
        "set training.optimizer=adamw (ZeRO has cut its moments already), or take "
        "parallel.strategy=fsdp",
    ),
    Refused(
        Setting("model.quantize_base"),
        Setting("method", ("lora",)),
        "method=lora has been tested on an unquantised base only",
        "set method=control with peft.type=lora, for adapters beside copies",
    ),
    Refused(
        Setting("model.quantize_base"),
        Setting("method", _TRAIN_BASE),
        "it trains weights of the base, and what trains is not quantised",
        "set method=control or stack",
    ),
    Refused(
        Setting("model.quantize_base", BNB_KINDS),
        _BY_ZERO,
        "the two have not been tested together",
        "set model.quantize_base=int8 or nf4",
    ),
    Refused(
        Setting("training.loss_chunk_size"),
        _BY_ZERO3,
        "the head's weight is used outside the head, where ZeRO-3 has not gathered it",
        "take parallel.strategy=fsdp or zero2",
    ),
    Refused(
        Setting("training.loss_chunk_size"),
        Setting("method", ("kl",)),
        "its loss needs all logits of base and model",
        "leave it out",
    ),
    Refused(
        _FUSED,
        Setting("method", ("kl",)),
        "its loss needs all logits of base and model",
        "set training.liger_kernel_config={fused_linear_cross_entropy: false}",
    ),
    Refused(
        _FUSED,
        _BY_ZERO3,
        "Liger's fused loss needs the head whole, which ZeRO-3 cuts",
        "set training.liger_kernel_config={fused_linear_cross_entropy: false}",
    ),
    Refused(
        Setting("model.quantize_base"),
        Setting("peft.type", ("dora",)),
        "DoRA computes with the base's weights",
        "set peft.type=lora or oft",
    ),
    Refused(
        Setting("expansion.interpolator", ("proj",)),
        _BY_ZERO3,
        "its matrix is used outside its forward pass, where ZeRO-3 has not gathered it",
        "take parallel.strategy=fsdp or zero2",
    ),
    Refused(
        Setting("training.torch_compile"),
        _BY_ZERO,
        "the two have not been tested together",
        "take parallel.strategy=fsdp",
    ),
    Refused(
        Setting("debug.anomaly"),
        Setting("training.torch_compile"),
        "it looks at single modules, which are compiled into one",
        "switch one of them off",
    ),
    Refused(
        Setting("training.worst_case_first"),
        _BY_ZERO,
        "the engine does not exist yet when that pass is made",
        "leave it out, or take parallel.strategy=fsdp",
    ),
)
"""Checked in this order, after `WAYS`."""


def check_support(run: Any) -> None:
    """Refuse what cannot work together.

    Args:
        run: a run config.

    Raises:
        ConfigError: with the settings, the reason, and the nearest that works.
    """
    backend, strategy = run.training.backend, run.parallel.strategy
    if (backend, strategy) not in WAYS:
        others = [name for name, way in WAYS if way == strategy]
        raise ConfigError(
            f"parallel.strategy={strategy} does not go together with training.backend={backend}; "
            f"set training.backend={' or '.join(others)}, or take parallel.strategy=fsdp."
        )
    for row in REFUSED:
        if row.one.is_met(run) and row.other.is_met(run):
            one, other = (f"{s.name or s.path}={_shown(s.of(run))}" for s in (row.one, row.other))
            raise ConfigError(f"{one} does not go together with {other}: {row.why}; {row.instead}.")


def check_quantised(kinds: Collection[str], strategy: str) -> None:
    """Refuse a base in few bits that several processes cannot share so.

    Args:
        kinds: what it is quantised as.
        strategy: `parallel.strategy`.

    Raises:
        ConfigError: with the reason, and the nearest that works.
    """
    wrong = [
        kind
        for kind in sorted(kinds)
        if not any(kind.startswith(k) and strategy in ways for k, ways in QUANTISED.items())
    ]
    if wrong:
        why = (
            "was never run" if strategy in _ZERO else "fails: they can be neither cut nor gathered"
        )
        raise ConfigError(
            f"Sharing weights quantised as {', '.join(wrong)} among several processes by "
            f"parallel.strategy={strategy} {why}. Take a base in full with "
            "model.quantize_base=int8 or nf4, which every strategy shares, or one process."
        )


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def page() -> str:
    """The three tables, in Markdown."""
    lines = _table(
        ("`training.backend`", "`parallel.strategy`", "state"),
        [(f"`{backend}`", f"`{way}`", state) for (backend, way), state in WAYS.items()],
    )
    lines += ["", "Refused at the start, with the reason:", ""]
    lines += _table(
        ("setting", "with", "why", "instead"),
        [(str(row.one), str(row.other), row.why, row.instead) for row in REFUSED],
    )
    lines += ["", "A base in few bits, shared by several processes:", ""]
    lines += _table(
        ("quantised as", "`parallel.strategy`"),
        [(f"`{kind}`...", ", ".join(ways) or "none: refused") for kind, ways in QUANTISED.items()],
    )
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def write_page(file: Path) -> None:
    """Put the tables between their marks in a file."""
    start, end = MARKS
    text = file.read_text()
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    file.write_text(pattern.sub(lambda _: f"{start}\n{page()}\n{end}", text))


if __name__ == "__main__":
    write_page(Path("docs/support.md"))
