"""Other text than the base's plain sequences of one length is rehearsed.

`lengths: [low, high]`: each sequence is cut at a length drawn evenly on a logarithmic scale.
`chat: 0.5`: such a share of the sequences is a user's turn and an answer, which the base writes
behind its chat template; only what it wrote is rehearsed. They are other sequences than those that
dials are chosen on, and that are told.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.study import trial

from controlllm.data import TokenStore
from controlllm.evaluate import OwnTextConfig, Writer, write_own_text
from controlllm.train import RunConfig
from controlllm.train.setup import base as setup

__all__ = ["Trial"]

_APART = 1000
"""Blocks of own text from here on are rehearsed; the study measures on the first ones."""


class Trial(trial.Trial):
    """Changes what a run rehearses."""

    def __init__(self, lengths: list[int] | None = None, chat: float = 0.0) -> None:
        """Range of the lengths in tokens; share of the sequences behind the chat template."""
        self.lengths, self.chat = lengths, chat

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, runs rehearse other text."""
        write: Any = vars(setup)["rehearsal_source"]

        def other(model: Any, tokenizer: Any, run: RunConfig, *more: Any) -> TokenStore:
            store = write(model, tokenizer, run, *more)
            examples = [store[i] for i in range(len(store))]
            if self.chat:
                chats = round(self.chat * len(examples))
                settings = OwnTextConfig(
                    measure=True,
                    num_sequences=max(chats, 8),
                    length=run.rehearsal.length,
                    chat=True,
                )
                folder = Path(str(run.rehearsal.cache_dir)) / "chat"
                block = _APART + run.training.seed
                sets = write_own_text(
                    Writer.base(model), tokenizer, settings, run.data, folder, block
                )
                examples[:chats] = sets["own_text_chat"][:chats]
            if self.lengths:
                low, high = map(math.log, self.lengths)
                dice = random.Random(run.training.seed)
                ends = [round(math.exp(dice.uniform(low, high))) for _ in examples]
                examples = [
                    replace(e, input_ids=e.input_ids[:end], labels=e.labels[:end])
                    for e, end in zip(examples, ends, strict=True)
                ]
            return TokenStore.from_examples("rehearsal", examples)

        with patch.object(setup, "rehearsal_source", other):
            yield
