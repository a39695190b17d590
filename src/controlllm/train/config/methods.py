"""The methods, each with what a run config has to know of it; `setup.methods` holds what they do.

A method of your own is made known by `controlllm.train.setup.methods.register_method`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.registry import Registry
from controlllm.expansion import ExpansionConfig
from controlllm.train.config.method_config import as_stack

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """The facts of one method."""

    expands: bool = False  # whether the base is expanded first, so that there is an alpha
    takes_adapters: bool = False  # whether it may train adapters of PEFT
    adapters: str | None = None  # their type where `peft.type` names none
    trains_base: bool = False  # whether weights of the base train
    asks_base: bool = False  # whether each step asks the base
    section: str | None = None  # the section of the run config that it alone reads
    check: Callable[[Any], None] = lambda run: None
    """Checks what is its own in a run config (ConfigError)."""
    settle: Callable[[ExpansionConfig], ExpansionConfig] = lambda expansion: expansion
    """Makes the method's expansion of what a run file says (ConfigError)."""


METHODS: Registry[Method] = Registry("method")
"""Methods by the name used in the run config."""


def _require_replay(run: Any) -> None:
    if not run.data.replay:
        raise ConfigError(
            "method='replay' needs old data: name it under data.replay, and its share as "
            "data.replay_share (0.05 to 0.125 is usual)."
        )


for _name, _method in {
    "control": Method(expands=True, takes_adapters=True),
    "stack": Method(expands=True, settle=as_stack),
    "lora": Method(takes_adapters=True, adapters="lora"),
    "full": Method(trains_base=True),
    "replay": Method(trains_base=True, check=_require_replay),
    "kl": Method(trains_base=True, asks_base=True, section="kl"),
    "freeze": Method(trains_base=True, section="freeze"),
}.items():
    METHODS.register(_name)(_method)
