"""One cell of a study: trained, its dial chosen, told. What is there is not done again.

Where a study tells other text than a cell was told on, only that is read again.
"""

import fcntl
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from benchmarks.origin import about
from benchmarks.study.items import Answered, Questions
from benchmarks.study.measuring import (
    CHOSEN,
    Sets,
    Settings,
    choose_settings,
    computed_in,
    losses,
    make_dial,
)
from benchmarks.study.plan import Cell, Study
from benchmarks.study.records import RESULT, Result, read_result, read_trained
from benchmarks.study.texts import base_path, write_kept, write_shift
from benchmarks.study.trial import Trial, make_trial
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint import LoadOptions, load_model
from controlllm.common.errors import ConfigError
from controlllm.common.storage.files import write_json
from controlllm.data import Batch, DataConfig, SourceConfig, eval_batches
from controlllm.evaluate.forgetting.dial import Dial
from controlllm.evaluate.own_text import OWN_TEXT, OwnTextConfig, Writer, write_own_text
from controlllm.evaluate.own_text.chat import has_template
from controlllm.train import RunConfig, train
from controlllm.train.config.config_io import merge
from controlllm.train.config.presets import preset_values

__all__ = ["Bench"]

BATCH = 8
ASKED = ("benchmarks", "questions")
"""Fields of a study that say what is asked."""


@dataclass
class Bench:
    """Where the cells of a study are worked on."""

    study: Study
    data: Path
    output: Path

    @cached_property
    def base(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base and its tokenizer."""
        path = base_path(self.study.base, self.data)
        return load_model(path, LoadOptions(dtype=self.study.dtype, device="cpu"))

    @property
    def chat(self) -> bool:
        """Whether requests and answers go behind a chat template."""
        return has_template(self.base[1], self.data_config)

    @cached_property
    def kept(self) -> dict[str, str]:
        """Files of the kept texts: those that are told, and `NAME-replay`."""
        written = (write_kept(n, self.data, self.texts, self.chat) for n in self.study.kept)
        return {name: path for files in written for name, path in files.items()}

    @property
    def texts(self) -> Path:
        """Where texts are written to."""
        return self.output / "texts"

    @cached_property
    def data_config(self) -> DataConfig:
        """How rows become tokens."""
        return DataConfig(max_length=self.study.length, packing=False)

    @cached_property
    def shift_files(self) -> dict[str, dict[str, str]]:
        """Files of each shift: train, chosen, told."""
        most = self.study.train_characters
        return {
            shift: write_shift(shift, self.data, self.texts, self.chat, most)
            for shift in self.study.shifts
        }

    def batches(self, path: str, limit: int) -> list[Batch]:
        """A text in batches, at most so many rows of it."""
        _, tokenizer = self.base
        return eval_batches(SourceConfig(path=path), tokenizer, self.data_config, BATCH, limit)

    def own_text(self, block: int, number: int) -> dict[str, list[Batch]]:
        """So many sequences that the base wrote, of each kind; other blocks are other ones."""
        model, tokenizer = self.base
        settings = OwnTextConfig(
            measure=True, num_sequences=number, length=self.study.length, chat=self.chat
        )
        written = write_own_text(
            Writer.base(model), tokenizer, settings, self.data_config, self.output / "own", block
        )
        return {
            name.replace(OWN_TEXT, "own"): eval_batches(rows, tokenizer, self.data_config, BATCH)
            for name, rows in written.items()
        }

    @cached_property
    def own_chosen(self) -> dict[str, list[Batch]]:
        """Own text to choose on."""
        return self.own_text(0, self.study.own_sequences)

    @cached_property
    def told(self) -> dict[str, list[Batch]]:
        """What is told of every cell: own text and kept texts that chose nothing."""
        study = self.study
        sets = self.own_text(1, study.told_sequences or study.own_sequences)
        rows = study.kept_rows or study.told_rows
        return sets | {name: self.batches(self.kept[name], rows) for name in study.kept}

    @cached_property
    def questions(self) -> Questions | None:
        """What base and cells are asked."""
        study = self.study
        if not study.benchmarks:
            return None
        return Questions.load(
            study.benchmarks, study.questions, self.data, self.base[1], self.output / "answers"
        )

    def work(self, cell: Cell) -> bool:
        """Train and measure a cell; False where that is done, or another process does it.

        Where only what is told has changed since, only that is done again.

        Raises:
            ConfigError: if what is there was found by another study.
        """
        trained = self.study.trained(cell)
        waits = trained != cell and read_trained(self.study, trained, self.output) is None
        if waits or read_result(self.study, cell, self.output) is not None:
            return False
        folders = {one.folder(self.output) for one in (trained, cell)}
        with _held(*sorted(folders)) as free:
            if not free or read_result(self.study, cell, self.output) is not None:
                return False
            before = read_trained(self.study, cell, self.output)
            write_json(cell.folder(self.output) / RESULT, self._result(cell, before))
        return True

    def check(self, cells: Iterable[Cell]) -> None:
        """Make each arm's run file and trial, and load the questions, before the first is run.

        Raises:
            ConfigError: one cannot be.
        """
        _ = self.questions  # They are loaded here.
        for cell in {cell.name: cell for cell in cells}.values():
            try:
                trial = make_trial(cell.arm)
                if cell.arm.trained_as is None:
                    with trial.training():  # A trial may know names of its own.
                        self.run_config(cell, trial)
            except ConfigError as error:
                raise ConfigError(f"arms.{cell.name}: {error}") from error

    def _result(self, cell: Cell, before: Result | None) -> Result:
        """What is found; of what was there `before`, all is kept but what is told otherwise now."""
        files, trained = self.shift_files[cell.shift], self.study.trained(cell)
        chosen = {"new": self.batches(files["chosen"], self.study.chosen_rows)} | self.own_chosen
        told = {"new": self.batches(files["told"], self.study.told_rows)} | self.told
        trial = make_trial(cell.arm)
        of_run = trial if trained == cell else make_trial(trained.arm)
        with of_run.training():
            model, seconds = self._train(trained, of_run)
            number = sum(p.numel() for p in model.parameters() if p.requires_grad)
            with computed_in(getattr(torch, self.study.dtype)):
                dial = trial.dial(make_dial(model, self.base[0]), chosen)
                if before is None:
                    read = self._read(dial, chosen, told)
                else:
                    read = self._read_again(dial, told, before)
        source = before
        if trained != cell and before is None:
            source = read_trained(self.study, trained, self.output)
        return {
            "arm": cell.name,
            "shift": cell.shift,
            "rate": cell.rate,
            "seed": cell.seed,
            **read,
            "trained_parameters": number,
            "seconds": before["seconds"] if before else seconds,
            "study": self.study.of(cell),
            "trained": source.get("trained", source["about"]) if source else about(),
            "about": about(),
        }

    def _read(self, dial: Dial, chosen: Sets, told: Sets) -> Result:
        """Settings of the dial that are chosen, and what is read and answered there."""
        at = choose_settings(dial, self.own_chosen, self.study.dials, self.study.budgets)
        sets = {CHOSEN + name: batches for name, batches in chosen.items()}
        return {"settings": losses(dial, {**sets, **told}, at), "items": self._items(dial, at)}

    def _read_again(self, dial: Dial, told: Sets, before: Result) -> Result:
        """What other documents say at the settings that were chosen before, and other questions."""
        print("trained before; what is told of it is read again", flush=True)
        known = before["settings"]
        at = {label: one["dial"] for label, one in known.items()}
        as_before = next(iter(known.values()))["sets"]
        other = {n: sets for n, sets in told.items() if not _same(as_before.get(n, {}), sets)}
        found = losses(dial, other, at)
        for label, one in known.items():
            sets = {n: one["sets"][n] for n in as_before if n in told or n.startswith(CHOSEN)}
            found[label]["sets"] = sets | found[label]["sets"]
        asked = all(before["study"][name] == getattr(self.study, name) for name in ASKED)
        return {"settings": found, "items": before["items"] if asked else self._items(dial, at)}

    def _items(self, dial: Dial, at: Settings) -> dict[str, Answered] | None:
        return {} if self.questions is None else self.questions.answered(dial, at)

    def _train(self, cell: Cell, trial: Trial) -> tuple[PreTrainedModel, float | None]:
        """The trained model as training leaves it, also of a run that is done.

        And the seconds that it took: of a run that goes on after a kill they are not known.
        """
        run = self.run_config(cell, trial)
        resumes = any(Path(run.training.output_dir).glob("checkpoint-*"))
        started = time.perf_counter()
        outcome = train(run)
        if outcome.stopped_because == "preempted":
            raise SystemExit("stopped by a signal; the same command goes on from here.")
        return outcome.model, None if resumes else time.perf_counter() - started

    def run_config(self, cell: Cell, trial: Trial) -> RunConfig:
        """The run of a cell: what is the same for all, the study's, the arm's, the trial's."""
        study, files = self.study, self.shift_files[cell.shift]
        own = {
            "model": {
                "model_name_or_path": base_path(study.base, self.data),
                "attn_implementation": "sdpa",
                "dtype": study.dtype,
            },
            "data": {"train": [{"path": files["train"]}], "max_length": study.length},
            "training": {
                "output_dir": str(cell.folder(self.output) / "run"),
                "max_steps": study.steps,
                "per_device_train_batch_size": study.rows,
                "min_lr_rate": 0.1,
                "warmup_steps": 0.1,
                "save_steps": max(study.steps // 3, 1),
                "save_total_limit": 1,
            },
            "logging": {"report_to": ["jsonl"]},
        }
        values = merge(merge(own, study.common), cell.arm.run)
        preset = values.get("preset")
        if "rehearsal" in (values | (preset_values(preset) if preset else {})):
            cache = {"length": study.length, "cache_dir": str(self.output / "rehearsal")}
            values["rehearsal"] = cache | values.get("rehearsal", {})
        of_cell = {"seed": cell.seed, "learning_rate": cell.rate}
        values = merge(values, {"training": of_cell})
        return RunConfig.from_dict(merge(values, trial.values(cell, files | self.kept)))


def _same(read: dict[str, Any], batches: Sequence[Batch]) -> bool:
    """Whether these are the documents of a set that was read: as many are the same."""
    return len(read.get("documents", ())) == sum(len(batch["input_ids"]) for batch in batches)


@contextmanager
def _held(*folders: Path) -> Iterator[bool]:
    """Whether this process alone works on the folders; no other one can begin meanwhile."""
    with ExitStack() as open_files:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            file = open_files.enter_context((folder / "lock").open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
        yield True
