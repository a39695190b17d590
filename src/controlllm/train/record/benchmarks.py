"""The hook that asks a suite of benchmarks: the base once, the model as it learns."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from controlllm.evaluate import (
    READINGS,
    Evaluation,
    LoadedSuite,
    Subject,
    ask_model,
    base_identity,
    default_store,
)
from controlllm.train.observe.timing import EVALUATION, PhaseClock
from controlllm.train.record.evaluation_time import EvaluationTime
from controlllm.train.record.hooks import Callback, RunState

__all__ = ["FOLDER", "Benchmarks"]

log = logging.getLogger(__name__)

FOLDER = "benchmarks"


class Benchmarks(Callback):
    """Asks before the first step, every `evaluation.suite_steps`, and after the last.

    Answers of the base are read from the store of all evaluations, or written to it; those of the
    model are kept in the run's folder only: `benchmarks/step-{step}/`, as `controlllm eval` has it.

    Args:
        clock: of the run.
        time: what evaluations take, against the run.
    """

    def __init__(self, clock: PhaseClock, time: EvaluationTime) -> None:
        self.clock, self.time = clock, time
        self._base: Evaluation | None = None
        self._done = -1

    def begin(self, state: RunState) -> None:
        """Ask the base, and the untrained model."""
        suite = state.ready.benchmarks
        if suite is None:
            return
        reference = state.ready.reference
        assert reference is not None  # A suite is compared with the base, so there is one.
        began = time.monotonic()
        questions = sum(loaded.num_docs() for _, loaded in suite.benchmarks)
        if state.is_first:
            log.info("Asking the base %d questions of suite %s", questions, suite.name)
        with reference.active() as base:
            identity = base_identity(base, state.tokenizer) | self._precision(state)
            subject = Subject("base", str(state.run.model.model_name_or_path), 0.0, identity)
            with self._measuring(state):
                self._base = self._ask(state, suite, subject, base, str(default_store()))
        if state.is_first:
            seconds = time.monotonic() - began
            log.info("The base answered in %.0f s; the model is asked as often", seconds)
        if state.step == 0:
            self._evaluate(state, suite)

    def after_step(self, state: RunState) -> None:
        """Ask where it is time to, once for each step."""
        suite, config = state.ready.benchmarks, state.run.evaluation
        if suite is None or state.step == self._done:
            return
        if state.stopped or state.step % (config.suite_steps or state.run.training.eval_steps) == 0:
            self._evaluate(state, suite)

    def _evaluate(self, state: RunState, suite: LoadedSuite) -> None:
        assert self._base is not None
        with self._measuring(state):
            found = self._ask(state, suite, Subject("tuned", str(state.folder)), state.model, None)
        both = self._base.joined(found)
        folder = state.folder / FOLDER / f"step-{state.step}" / suite.name
        state.world.ranks.first(lambda: both.save(folder))
        state.log(dict(_metrics(both)))
        self._done = state.step

    @staticmethod
    def _ask(
        state: RunState, suite: LoadedSuite, subject: Subject, model: object, store: str | None
    ) -> Evaluation:
        return ask_model(
            suite,
            subject,
            model,
            state.tokenizer,
            store=store,
            batch_size=state.run.training.per_device_eval_batch_size,
            ranks=state.world.ranks,
        )

    @contextmanager
    def _measuring(self, state: RunState) -> Iterator[None]:
        with self.clock.phase(EVALUATION), self.time.counted(state), state.ready.autocast():
            yield

    @staticmethod
    def _precision(state: RunState) -> dict[str, str]:
        dtype = state.run.training.autocast_dtype
        return {} if dtype is None else {"autocast": str(dtype)}


def _metrics(found: Evaluation) -> Iterator[tuple[str, float]]:
    """`benchmarks/{benchmark}/{reading}` of the model, `base_{reading}` of the base."""
    for asked in found.benchmarks:
        for label, prefix in (("tuned", ""), ("base", "base_")):
            items = found.of(label, asked.name)
            for name in READINGS:
                read = [value for item in items if (value := item.reading(name)) is not None]
                if read:
                    yield f"benchmarks/{asked.name}/{prefix}{name}", sum(read) / len(read)
        yield f"benchmarks/{asked.name}/rows", float(len(items))
