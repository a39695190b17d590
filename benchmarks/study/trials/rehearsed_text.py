"""Shorter sequences than those that the base wrote are rehearsed.

`lengths: [low, high]`: each is cut at a length drawn evenly on a logarithmic scale.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from benchmarks.study import trial

from controlllm.data import TokenStore
from controlllm.train import RunConfig
from controlllm.train.setup import base as setup

__all__ = ["Trial"]


class Trial(trial.Trial):
    """Changes what a run rehearses."""

    def __init__(self, lengths: list[int]) -> None:
        """Range of the lengths in tokens."""
        self.lengths = lengths

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, runs rehearse other text."""
        write: Any = vars(setup)["rehearsal_source"]

        def other(model: Any, tokenizer: Any, run: RunConfig, *more: Any) -> TokenStore:
            store = write(model, tokenizer, run, *more)
            low, high = map(math.log, self.lengths)
            dice = random.Random(run.training.seed)
            examples = [store[i] for i in range(len(store))]
            ends = [round(math.exp(dice.uniform(low, high))) for _ in examples]
            cut = [
                replace(e, input_ids=e.input_ids[:end], labels=e.labels[:end])
                for e, end in zip(examples, ends, strict=True)
            ]
            return TokenStore.from_examples("rehearsal", cut)

        with patch.object(setup, "rehearsal_source", other):
            yield
