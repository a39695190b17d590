"""The hook that lets the model write: texts for held-out prompts, and their numbers.

output_dir/generation/
  base.json                  what the base wrote, once: a resumed run reads it
  step-{step}/{set}.jsonl    prompt, reference, base and tuned of each row that was scored
  step-{step}/{set}.md       the first of them, for people
"""

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TypeVar, cast

from transformers import PreTrainedModel

from controlllm.checkpoint import capture_rng, restore_rng
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.files import read_json, write_json, write_text
from controlllm.common.text.progress import Progress
from controlllm.evaluate.texts import as_markdown
from controlllm.train.observe.answers import Answer, Answers, Pace, as_values
from controlllm.train.observe.generation import GenerationMeter
from controlllm.train.observe.metrics import generation_metrics
from controlllm.train.observe.timing import EVALUATION, PhaseClock
from controlllm.train.record.evaluation_time import EvaluationTime
from controlllm.train.record.hooks import Callback, RunState

__all__ = ["FOLDER", "Generation"]

log = logging.getLogger(__name__)

T = TypeVar("T")

FOLDER = "generation"
BASE = "base.json"
MOST_SHOWN = 20
"""Rows of a set that people and loggers are shown."""


class Generation(Callback):
    """Writes before the first step, every `evaluation.generation.eval_steps`, and after the last.

    Args:
        clock: of the run.
        time: what evaluations take, against the run.
    """

    def __init__(self, clock: PhaseClock, time: EvaluationTime) -> None:
        self.clock, self.time = clock, time
        self._base: Answers = {}
        self._done = -1
        self._is_told = False

    def begin(self, state: RunState) -> None:
        """Let the base write, unless an earlier process has; and the untrained model."""
        if not state.ready.texts.enabled:
            return
        folder = state.folder / FOLDER
        if state.is_first:
            _drop_later(folder, state.step)
        with self.clock.phase(EVALUATION):
            self._undisturbed(state, state.ready.texts.try_out)
            self._base = self._read_base(state) or self._write_base(state)
            if state.step == 0:
                self._evaluate(state)

    def after_step(self, state: RunState) -> None:
        """Write where it is time to, once for each step."""
        config = state.run.evaluation.generation
        every = config.eval_steps or state.run.training.eval_steps
        due = state.stopped or state.step % every == 0
        if due and state.ready.texts.enabled and state.step != self._done:
            with self.clock.phase(EVALUATION), self.time.counted(state):
                self._evaluate(state)

    def _evaluate(self, state: RunState) -> None:
        meter, base = state.ready.texts, self._base
        most = {name: len(rows) for name, rows in base.items()}
        tuned = self._write(state, "the model", lambda pace: meter.write(state.model, pace, most))
        state.log(self._undisturbed(state, lambda: self._record(state, tuned)))
        for name in meter.sets:
            samples = meter.samples(base, tuned, name)[:MOST_SHOWN]
            state.log_texts(f"generation/{name}", samples)
        self._done = state.step

    def _undisturbed(self, state: RunState, score: Callable[[], T]) -> T:
        """Score on the first process; a metric of a user's own may draw random numbers there."""
        random_state = capture_rng()
        try:
            return state.world.ranks.first(score)
        finally:
            restore_rng(random_state)

    def _record(self, state: RunState, tuned: Answers) -> dict[str, float]:
        """Score and write down; on the first process."""
        meter = state.ready.texts
        reports = meter.measure(self._base, tuned)
        metrics: dict[str, float] = {}
        for name, report in reports.items():
            metrics |= generation_metrics(name, report.rows, report.compared)
        folder = state.folder / FOLDER / f"step-{state.step}"
        for name, file in _file_names(meter).items():
            samples = meter.samples(self._base, tuned, name)
            lines = [json.dumps(one.to_dict(), ensure_ascii=False) for one in samples]
            write_text(folder / f"{file}.jsonl", "".join(f"{line}\n" for line in lines))
            title = f"{name}, step {state.step}"
            page = as_markdown(title, samples[:MOST_SHOWN], reports[name].compared)
            write_text(folder / f"{file}.md", page)
        return metrics

    def _write_base(self, state: RunState) -> Answers:
        reference = state.ready.reference
        assert reference is not None  # The sets are held-out sets, for which there is one.
        with reference.active() as base:
            model = cast(PreTrainedModel, base)
            answers = self._write(
                state, "the base", lambda pace: state.ready.texts.write(model, pace)
            )
            state.world.reshard(base)
        values = {"key": _key(state), "answers": as_values(answers)}
        path = state.folder / FOLDER / BASE
        state.world.ranks.first(lambda: write_json(path, values, indent=None))
        return answers

    def _read_base(self, state: RunState) -> Answers | None:
        """What the base wrote in an earlier process of this run, if it was asked the same."""
        if state.step == 0:  # The folder may have been that of another run that never began.
            return None
        path = state.folder / FOLDER / BASE
        found = state.world.ranks.first(lambda: _read(path, _key(state), state.ready.texts))
        if found is None and state.is_first:
            log.info("The base writes anew: %s does not hold its answers to these questions", path)
        return found

    def _write(
        self,
        state: RunState,
        who: str,
        write: Callable[[Pace], dict[str, list[Answer]]],
    ) -> dict[str, list[Answer]]:
        """Let somebody write within the bounds, and say how far it came. Collective."""
        config, meter = state.run.evaluation.generation, state.ready.texts
        began = time.monotonic()
        line = Progress(f"{who} writes", "texts", meter.rows)

        def told(done: int, rows: int) -> None:
            self._expect(state, (time.monotonic() - began) / done * rows)
            line.show(done)

        pace = Pace(
            lambda: state.world.max([time.monotonic() - began])[0],
            config.max_seconds,
            self.clock.beat,
            told,
        )
        with state.ready.autocast(), closing(line):
            answers = write(pace)
        state.world.reshard(state.model)
        if state.is_first:
            self._tell(state, who, answers, time.monotonic() - began)
        return answers

    def _expect(self, state: RunState, seconds: float) -> None:
        """Say after the first batch of the run what an evaluation is going to take."""
        if self._is_told or not state.is_first:
            return
        self._is_told = True
        bound = state.run.evaluation.generation.max_seconds
        ends = f"; it ends after {bound:g} s (evaluation.generation.max_seconds)"
        log.info(
            "An evaluation writes %d texts, which is going to take about %s%s",
            state.ready.texts.rows,
            _duration(seconds),
            ends if bound is not None and seconds > bound else "",
        )

    def _tell(self, state: RunState, who: str, answers: Answers, seconds: float) -> None:
        meter, config = state.ready.texts, state.run.evaluation.generation
        parts = [
            f"{len(rows)} of {len(meter.sets[name].questions)} rows of {name}"
            for name, rows in answers.items()
        ]
        text = f"Step {state.step}: {who} wrote for {', '.join(parts)} in {_duration(seconds)}"
        if sum(map(len, answers.values())) < meter.rows:
            text += f"; the rest is not scored (max_seconds={config.max_seconds:g})"
        log.info(text)


def _key(state: RunState) -> str:
    """Changes when the base, or what it is asked, is another one."""
    model, dtype = state.run.model, state.run.training.autocast_dtype
    base = (model.model_name_or_path, model.dtype, model.quantize_base, dtype)
    return f"{state.ready.texts.key()} {base}"


def _read(path: Path, key: str, meter: GenerationMeter) -> dict[str, list[Answer]] | None:
    """Answers from a file; None where there are none to these questions."""
    try:
        values = read_json(path)
        if values["key"] != key:
            return None
        found = {name: [*map(Answer.read, values["answers"][name])] for name in meter.sets}
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None
    fits = all(0 < len(rows) <= len(meter.sets[name].questions) for name, rows in found.items())
    return found if fits else None


def _file_names(meter: GenerationMeter) -> Mapping[str, str]:
    """A name for the files of each set, whatever characters its own has."""
    names: dict[str, str] = {}
    for number, name in enumerate(meter.sets):
        plain = re.sub(r"[^\w.-]+", "_", name).strip(".")[:64] or "set"
        names[name] = f"{plain}-{number}" if plain in names.values() else plain
    return names


def _drop_later(folder: Path, step: int) -> None:
    """Remove what an earlier process wrote of steps that are made again."""
    for path in folder.glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdecimal() and (int(number) > step or step == 0):
            shutil.rmtree(path, ignore_errors=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
