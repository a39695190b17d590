"""On-policy repair: in the last part of a run the model that trains writes what is rehearsed.

At that step it writes as many sequences as the base did, as it is then; what has not been read yet
of the base's comes from them, and is held to the base by the same KL.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks.study import trial

from controlllm.data import Example, TokenStore
from controlllm.evaluate import Writer
from controlllm.evaluate.own_text import SamplingPlan, read_prompts, sample_sequences
from controlllm.train.loops.native import NativeLoop
from controlllm.train.setup.stages import Ready

__all__ = ["Trial"]


class Trial(trial.Trial):
    """The last part of the steps rehearses the model's own text."""

    def __init__(self, part: float = 0.1, dial: float | None = None) -> None:
        """Which part of the steps is the last; at which dial the model writes (as trained)."""
        self.part, self.writes_at = part, dial

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, runs of the native loop repair."""
        step = NativeLoop.step
        repaired: list[Ready] = []

        def step_or_repair(loop: NativeLoop, batches: Any) -> Any:
            ready, done = loop.ready, loop.recorder.state.progress.step
            if not repaired and done >= (1 - self.part) * ready.total_steps:
                repaired.append(ready)
                self._repair(ready)
            return step(loop, batches)

        with patch.object(NativeLoop, "step", step_or_repair):
            yield

    def _repair(self, ready: Ready) -> None:
        """Let the model write, in the place of what the base wrote."""
        store = ready.loader.feeds[-1].chunks
        assert isinstance(store, TokenStore)
        rehearsal = ready.run.rehearsal
        plan = SamplingPlan(
            num_sequences=len(store),
            length=rehearsal.length or ready.run.data.max_length,
            temperature=rehearsal.temperature,
            batch_size=rehearsal.batch_size,
            seed=ready.run.training.seed,
            prompts=read_prompts(ready.tokenizer, rehearsal.prompts, "rehearsal"),
            end=ready.tokenizer.eos_token_id,
        )
        model: Any = ready.model
        before = model.expansion.dial
        if self.writes_at is not None:
            model.set_alpha(self.writes_at)
        rows = sample_sequences(Writer.trained(model, ready.tokenizer), plan, "repair")
        model.set_alpha(before)
        model.train()
        other = TokenStore.from_examples("rehearsal", [Example.whole(row) for row in rows])
        state = ready.loader.state_dict()
        kept = {"fingerprint": store.fingerprint}
        vars(store).update(vars(other) | kept)
        ready.loader.load_state_dict(state)  # What was read ahead is read again.
