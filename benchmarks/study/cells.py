"""One cell of a study: trained, its dial chosen, told. What is there is not done again."""

import fcntl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from benchmarks.origin import about
from benchmarks.study.items import Questions
from benchmarks.study.measuring import choose_settings, computed_in, losses, make_dial
from benchmarks.study.plan import Cell, Study
from benchmarks.study.records import RESULT, Result, read_result, read_trained
from benchmarks.study.texts import base_path, write_kept, write_shift
from benchmarks.study.trial import Trial, make_trial
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint import LoadOptions, load_model
from controlllm.common.errors import ConfigError
from controlllm.common.storage.files import write_json
from controlllm.data import Batch, DataConfig, SourceConfig, eval_batches
from controlllm.evaluate.own_text import OWN_TEXT, OwnTextConfig, Writer, write_own_text
from controlllm.evaluate.own_text.chat import has_template
from controlllm.train import RunConfig, train
from controlllm.train.config.config_io import merge
from controlllm.train.config.presets import preset_values

__all__ = ["Bench"]

BATCH = 8
CHOSEN, TOLD = 0, 1
"""Blocks of own text."""


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

    def own_text(self, block: int) -> dict[str, list[Batch]]:
        """What the base wrote, in batches; other blocks are other sequences."""
        model, tokenizer = self.base
        number = self.study.own_sequences if block == CHOSEN else self.study.told_sequences
        settings = OwnTextConfig(
            measure=True, num_sequences=number or self.study.own_sequences,
            length=self.study.length, chat=self.chat,
        )  # fmt: skip
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
        return self.own_text(CHOSEN)

    @cached_property
    def told(self) -> dict[str, list[Batch]]:
        """What is told of every cell: own text and kept texts that chose nothing."""
        sets = self.own_text(TOLD)
        rows = self.study.told_rows
        return sets | {name: self.batches(self.kept[name], rows) for name in self.study.kept}

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
        folder = cell.folder(self.output)
        folder.mkdir(parents=True, exist_ok=True)
        with _held(folder) as free:
            if not free or read_result(self.study, cell, self.output) is not None:
                return False
            before = read_trained(self.study, cell, self.output)
            run = trained.folder(self.output) / "run"
            write_json(folder / RESULT, self._result(cell, run, before))
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

    def _result(self, cell: Cell, run: Path, before: Result | None) -> Result:
        """What is found; of a cell that was told of `before`, its settings and times are kept."""
        files, own = self.shift_files[cell.shift], self.own_chosen
        chosen = {"new": self.batches(files["chosen"], self.study.chosen_rows)} | own
        told = {"new": self.batches(files["told"], self.study.told_rows)} | self.told
        sets = {f"chosen {name}": batches for name, batches in chosen.items()} | told
        trial = make_trial(cell.arm)
        with trial.training():
            if before is None and cell.arm.trained_as is None:
                model, seconds = self._train(cell, trial, run)
            else:
                model, seconds = load_model(run)[0], before and before["seconds"]
            number = sum(p.numel() for p in model.parameters() if p.requires_grad)
            with computed_in(getattr(torch, self.study.dtype)):
                dial = trial.dial(make_dial(model, self.base[0]), chosen)
                if before is None:
                    at = choose_settings(dial, own, self.study.dials, self.study.budgets)
                else:
                    at = {label: one["dial"] for label, one in before["settings"].items()}
                found = losses(dial, sets, at)
                items = {} if self.questions is None else self.questions.answered(dial, at)
        return {
            "arm": cell.name,
            "shift": cell.shift,
            "rate": cell.rate,
            "seed": cell.seed,
            "settings": found,
            "items": items,
            "trained_parameters": number if before is None else before["trained_parameters"],
            "seconds": seconds,
            "study": self.study.of(cell),
            "about": about(),
        }

    def _train(self, cell: Cell, trial: Trial, run: Path) -> tuple[PreTrainedModel, float | None]:
        """The trained model, and the seconds that it took, where they could be timed.

        Of a run that was killed between, only the last part could be.
        """
        started, resumes = time.perf_counter(), any(run.glob("checkpoint-*"))
        outcome = train(self.run_config(cell, trial))
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


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether this process alone works on the folder; no other one can begin meanwhile."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
