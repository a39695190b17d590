"""Base and averaged model are computed in float32, whatever type they were trained in.

In bfloat16 an average near the base is rounded: much of a small difference is lost.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from benchmarks.study import trial

from controlllm.data import Batch
from controlllm.evaluate.forgetting.dial import Dial
from controlllm.evaluate.forgetting.reference import Reference

__all__ = ["Trial"]


class Trial(trial.Trial):
    """No settings; for models that do not carry their base."""

    def dial(self, dial: Dial, chosen: Mapping[str, Sequence[Batch]]) -> Dial:
        base = deepcopy(dial.reference.copy)  # Other cells use it as it is.
        assert base is not None
        for model in (dial.model, base):
            exact: Any = model.float()
            exact.forward = torch.autocast("cpu", enabled=False)(exact.forward)
        return Dial(dial.model, dial.turn, Reference(dial.model, copy=base), dial.name)
