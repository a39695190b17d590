"""Where metrics go: console, JSON lines, TensorBoard, W&B.

A logger is anything with `log(metrics, step)` and `close()`; one with `log_texts(name, samples,
step)` is shown what the model writes, too. Each is made with the step that the
run starts from, and continues the curves of an earlier process: what that process logged beyond
the checkpoint is dropped, so that no step appears twice.
"""

import importlib
import json
import math
import sys
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from controlllm.common.errors import ConfigError
from controlllm.common.storage.files import read_json, write_json, write_text
from controlllm.common.text.readable import readable, unguarded
from controlllm.common.text.secrets import redacted
from controlllm.evaluate.texts import Sample, as_markdown
from controlllm.train.config.registries import LOGGERS
from controlllm.train.config.run_config import RunConfig
from controlllm.train.observe import metrics as names
from controlllm.train.record.descriptions import describe_sets

__all__ = ["LOGGERS", "JsonLinesLogger", "LoggerContext", "MetricLogger", "make_loggers"]


class MetricLogger(Protocol):
    """Takes metrics as they come."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record the metrics of one step."""

    def close(self) -> None:
        """Write what is still in memory."""


@dataclass(frozen=True)
class LoggerContext:
    """What a logger knows about its run."""

    run: RunConfig
    total_steps: int  # length of the run in optimizer steps
    start_step: int  # steps done before this process (0 = a new run)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.run.training.output_dir)


def make_loggers(context: LoggerContext) -> list[MetricLogger]:
    """All loggers of this package that the run asks for.

    Raises:
        ConfigError: for an unknown logger, or one whose package is not installed.
    """
    config = context.run.logging
    asked = [name for name in dict.fromkeys(config.report_to) if name not in config.integrations]
    return [LOGGERS.get(name)(context) for name in asked]


@LOGGERS.register("jsonl")
class JsonLinesLogger:
    """`metrics.jsonl`: one JSON object per record: `step`, `time` (Unix seconds), the metrics.

    A value that is not finite is written as null, which every JSON reader understands.
    """

    def __init__(self, context: LoggerContext) -> None:
        path = context.folder / "metrics.jsonl"
        write_text(path, "".join(_kept_lines(path, context.start_step)))
        self.file = path.open("a", encoding="utf-8")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line and hand it to the operating system, where a kill cannot reach it."""
        values = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self.file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _kept_lines(path: Path, start_step: int) -> list[str]:
    """The whole records up to the step that the run resumes from (none for a new run)."""
    if start_step == 0 or not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= start_step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # The last line of a killed process; its step is run again.
    return kept


@LOGGERS.register("tensorboard")
class TensorBoardLogger:
    """Scalars under `tensorboard/`; records beyond the resumed step are purged."""

    def __init__(self, context: LoggerContext) -> None:
        self.writer: Any = None
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            # It is reported to by default, so a lean installation must be able to train.
            warnings.warn(
                "tensorboard is not installed, its curves are not written: `pip install "
                "tensorboard`, or leave it out of logging.report_to.",
                stacklevel=2,
            )
            return
        folder = str(context.folder / "tensorboard")
        self.writer = module.SummaryWriter(folder, purge_step=context.start_step + 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add every metric as a scalar."""
        if self.writer is not None:
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, step)

    def log_texts(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """Add samples as a text, in Markdown that none of them can change."""
        if self.writer is not None:
            self.writer.add_text(name, as_markdown(name, samples), step)

    def close(self) -> None:
        """Flush and close the event file."""
        if self.writer is not None:
            self.writer.close()


@LOGGERS.register("wandb")
class WandbLogger:
    """Weights & Biases; the run's id is kept in `wandb.json`, so that a resumed run continues it.

    Raises:
        ConfigError: if the package is not installed.
    """

    def __init__(self, context: LoggerContext) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                "logging.report_to names wandb, which is not installed: `pip install wandb`."
            ) from error
        logging, folder = context.run.logging, context.folder
        note = folder / "wandb.json"
        if context.start_step == 0 or not note.is_file():
            write_json(note, {"id": uuid.uuid4().hex[:12]})
        self.make_table = wandb.Table
        self.run = wandb.init(
            project=logging.project,
            name=logging.run_name or folder.resolve().name,
            id=str(read_json(note)["id"]),
            resume="allow",
            dir=str(folder),
            config=redacted(context.run.to_dict()),
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the metrics."""
        self.run.log(dict(metrics), step=step)

    def log_texts(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """Send samples as a table."""
        rows = [list(one.to_dict().values()) for one in samples]
        columns = [field.name for field in fields(Sample)]
        self.run.log({f"{name}/samples": self.make_table(columns=columns, data=rows)}, step=step)

    def close(self) -> None:
        """Finish the W&B run."""
        self.run.finish()


@LOGGERS.register("console")
def _console(context: LoggerContext) -> MetricLogger:
    """A progress bar on a terminal, plain lines elsewhere."""
    return ProgressBarLogger(context) if sys.stdout.isatty() else PlainLogger(context)


_LOSSES = (names.LOSS, names.CROSS_ENTROPY, names.DIVERGENCE, names.ANCHOR, names.REHEARSAL)


class PlainLogger:
    """One line per record."""

    def __init__(self, context: LoggerContext) -> None:
        self.total, self.start = context.total_steps, context.start_step
        self.began = time.monotonic()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Print the record."""
        place = f"{step:>{len(str(self.total))}}/{self.total}"
        print(f"step {place}  {self.describe(metrics, step)}", flush=True)

    def describe(self, metrics: Mapping[str, float], step: int) -> str:
        """The record as one readable line."""
        if names.LOSS not in metrics:
            return describe_sets(metrics)
        parts = [
            f"{name.removeprefix('train/')} {metrics[name]:.4f}"
            for name in _LOSSES
            if name in metrics
        ]
        parts.append(f"lr {metrics[names.LEARNING_RATE]:.2e}")
        parts.append(f"grad {metrics[names.GRAD_NORM]:.3f}")
        parts.append(f"{metrics[names.TOKENS_PER_SECOND]:,.0f} tokens/s")
        # Time left at the pace so far, as h:mm:ss.
        pace = (time.monotonic() - self.began) / max(step - self.start, 1)
        left = timedelta(seconds=round(pace * (self.total - step)))
        return "  ".join([*parts, f"ETA {left}"])

    def close(self) -> None:
        """Nothing is buffered."""


class ProgressBarLogger(PlainLogger):
    """A bar with pace and time left; measurements of sets are printed above it."""

    def __init__(self, context: LoggerContext) -> None:
        super().__init__(context)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        said = TextColumn("{task.description}", markup=False)
        console = Console(file=unguarded(sys.stdout))
        self.bar = Progress(BarColumn(), MofNCompleteColumn(), said, console=console)
        self.task = self.bar.add_task("", total=self.total, completed=self.start)
        self.bar.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Move the bar, or print the measurement."""
        text = readable(self.describe(metrics, step))
        if names.LOSS in metrics:
            self.bar.update(self.task, completed=step, description=text)
        else:
            self.bar.console.print(f"step {step}  {text}", highlight=False, markup=False)

    def close(self) -> None:
        """Stop the bar."""
        self.bar.stop()
