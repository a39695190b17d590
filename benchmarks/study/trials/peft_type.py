"""Adapters of PEFT that the library has no option for: `type: SHIRA`, `type: OSF`.

Which layers get them, and how they are trained, saved and merged, is as with method `lora`.
"""

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from benchmarks.study import trial

from controlllm.common.registry import check_choice
from controlllm.expansion.hub import peft

__all__ = ["Trial"]


class Trial(trial.Trial):
    """`type`: what PEFT calls them; the rest are its settings of them."""

    def __init__(self, type: str, **settings: Any) -> None:
        check_choice("type", type, [kind.value for kind in peft.require_peft().PeftType])
        self.values_of_peft = {"peft_type": type} | settings

    def training(self) -> AbstractContextManager[Any]:
        """Inside, method `lora` puts these in."""
        return patch.dict(peft._MAKERS, {"lora": lambda config, layers: self.values_of_peft})
