"""An evaluation as it lies in a folder: what was asked, of whom, and what came back.

```
FOLDER/evaluation.json    benchmarks, models, versions, lm-eval's own scores
FOLDER/items-0.jsonl      the items of the first model, one per line
FOLDER/items-1.jsonl      of the second
```
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from controlllm.common.errors import DataError
from controlllm.common.storage.files import atomic_file, read_json, write_json
from controlllm.evaluate.items.fields import made

__all__ = ["READINGS", "Asked", "Evaluation", "Item", "Subject", "finite_score"]

READINGS = {"strict": True, "lenient": True, "choice": True, "bits_per_byte": False}
"""What is read off an item, and whether more is better.

`strict`: the answer was right and written as the task asks; `lenient`: it was right wherever it
stood; `choice`: the right choice was the likeliest (log-likelihood); `bits_per_byte`: how many bits
per UTF-8 byte the model needs to write the right answer.
"""
EVALUATION = "evaluation.json"
LONGEST_LINE = 4 << 20
"""Bytes of one item; texts in it are cut long before."""


@dataclass(frozen=True)
class Item:
    """One question put to one model, and what came back.

    Attributes:
        benchmark: the row of the suite.
        task: lm-eval's task, a subject of MMLU for instance.
        doc: number of the document in its split.
        prompt: 16 hex digits of the SHA-256 of all that the model read.
        question: the end of the prompt, for people.
        gold: the right answer.
        cluster: what other items share with it (a passage); None if it stands alone.
        answer: what the model wrote, or the choice that it found likeliest.
        strict: 1 or 0 (a mean of several samples for code); None where it is not read.
        lenient: as `strict`.
        choice: as `strict`.
        bits_per_byte: of the right answer after the prompt.
        in_format: whether the answer could be read as the task asks.
        cut_off: whether the answer reached the limit of tokens before it ended.
    """

    benchmark: str
    task: str
    doc: int
    prompt: str
    question: str
    gold: str
    cluster: str | None = None
    answer: str | None = None
    strict: float | None = None
    lenient: float | None = None
    choice: float | None = None
    bits_per_byte: float | None = None
    in_format: bool | None = None
    cut_off: bool | None = None

    def reading(self, name: str) -> float | None:
        """One of `READINGS`."""
        value = getattr(self, name)
        return None if value is None else float(value)


@dataclass(frozen=True)
class Asked:
    """A benchmark as it was asked.

    Attributes:
        name: the row of the suite.
        tasks: lm-eval's names.
        kind: "choice", "generate" or "code".
        chance: what guessing gets.
        prompt: "plain", or "chat" where the model's chat template was put around it.
        shots: solved examples before each question; None = as each task says.
        strict: the metric read as strict; None where there is none.
        lenient: likewise.
        choice: lm-eval's metric of the likeliest choice; None = "acc,none".
        max_new_tokens: the limit of an answer; None = as each task says.
        dataset: where its documents come from.
        licence: of these documents.
        samples: how many answers were written to each question.
        sampled: how many of its documents were drawn; None = all.
        seed: of the draw and of the examples.
    """

    name: str
    tasks: tuple[str, ...]
    kind: str
    chance: float = 0.0
    prompt: str = "plain"
    shots: int | None = None
    strict: str | None = None
    lenient: str | None = None
    choice: str | None = None
    max_new_tokens: int | None = None
    dataset: str = ""
    licence: str = ""
    samples: int = 1
    sampled: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """A model that was asked.

    Attributes:
        label: "base", "tuned", "alpha 0.3", "collapsed".
        name: where it was loaded from.
        alpha: of the dial; None = as trained, or none.
        identity: what tells its answers from another model's (weights, dtype, tokenizer).
        room: the longest input in tokens.
        seconds: that its answers took; answers of an earlier evaluation take none.
    """

    label: str
    name: str
    alpha: float | None = None
    identity: dict[str, str] = field(default_factory=dict)
    room: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """What several models answered to the same questions.

    Attributes:
        suite: its name.
        benchmarks: in the suite's order.
        models: the base first, where there is one.
        items: of each model, by its label.
        scores: lm-eval's own values: model, task, metric, value; read from a file, a value that
            was no finite number (a perplexity of infinity) is None.
        provenance: versions, command, machine, time.
    """

    suite: str
    benchmarks: tuple[Asked, ...]
    models: tuple[Subject, ...]
    items: Mapping[str, tuple[Item, ...]] = field(default_factory=dict)
    scores: tuple[dict[str, Any], ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)

    def of(self, label: str, benchmark: str) -> tuple[Item, ...]:
        """The items of one model and one benchmark."""
        return tuple(item for item in self.items[label] if item.benchmark == benchmark)

    def joined(self, other: "Evaluation") -> "Evaluation":
        """This one with the models of another one, which was asked the same suite."""
        return replace(
            self,
            models=self.models + other.models,
            items={**self.items, **other.items},
            scores=self.scores + other.scores,
        )

    def is_like(self, other: "Evaluation") -> bool:
        """Whether both asked the same of the same models: one may take the other's place."""
        mine, others = ([m.label for m in one.models] for one in (self, other))
        return self.benchmarks == other.benchmarks and mine == others

    def save(self, folder: str | Path) -> None:
        """Write it; each file appears whole or not at all, and the list of them last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for number, model in enumerate(self.models):
            with atomic_file(folder / f"items-{number}.jsonl") as path, path.open("w") as file:
                for item in self.items[model.label]:
                    file.write(json.dumps(asdict(item), ensure_ascii=True) + "\n")
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "items"}
        values["benchmarks"] = [asdict(one) for one in self.benchmarks]
        values["models"] = [asdict(one) for one in self.models]
        values["scores"] = [finite_score(row) for row in self.scores]
        write_json(folder / EVALUATION, values)

    @classmethod
    def load(cls, folder: str | Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            DataError: there is none, or a value is not what it must be; with file and line.
        """
        path = Path(folder) / EVALUATION
        if not path.is_file():
            raise DataError(f"{folder} holds no {EVALUATION}: run `controlllm eval --suite` first.")
        values = read_json(path)
        if not isinstance(values, dict):
            raise DataError(f"{path} is no evaluation.")
        parts: dict[str, Any] = {}
        for name, kind in (("benchmarks", Asked), ("models", Subject), ("scores", _Score)):
            rows = values.pop(name, [] if name == "scores" else None)
            if not isinstance(rows, list):
                raise DataError(f"{path}: {name} is no list.")
            if kind is _Score:
                rows = [finite_score(row) if isinstance(row, dict) else row for row in rows]
            parts[name] = tuple(made(kind, row, f"{path}: {name}") for row in rows)
        parts["scores"] = tuple(asdict(score) for score in parts["scores"])
        labels = [model.label for model in parts["models"]]
        if len({*labels}) < len(labels):
            raise DataError(f"{path}: models are named twice: {labels}.")
        items = {
            label: tuple(_items(Path(folder) / f"items-{number}.jsonl"))
            for number, label in enumerate(labels)
        }
        return made(cls, values | parts | {"items": items}, str(path))


@dataclass(frozen=True)
class _Score:
    """A row of `Evaluation.scores`."""

    model: str
    task: str
    metric: str
    value: float | None


def finite_score(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `Evaluation.scores` for JSON, which knows no infinity: None stands for it."""
    value = row.get("value")
    unknown = isinstance(value, float) and not math.isfinite(value)
    return row | {"value": None} if unknown else row


def _items(path: Path) -> Iterator[Item]:
    lines: dict[tuple[str, str, int], int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
                where = f"{path}:{number}"
                if len(line) > LONGEST_LINE:
                    raise DataError(
                        f"{where} is too long: an item has {LONGEST_LINE:,} bytes at most."
                    )
                try:
                    item = made(Item, json.loads(line), where)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{where} is no JSON: {error}.") from error
                _check_readings(item, where)
                first = lines.setdefault((item.benchmark, item.task, item.doc), number)
                if first != number:
                    raise DataError(
                        f"{where} is document {item.doc} of {item.task} ({item.benchmark}) again, "
                        f"which line {first} is already; which of them counts cannot be told."
                    )
                yield item
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def _check_readings(item: Item, where: str) -> None:
    for name, is_rate in READINGS.items():
        value = item.reading(name)
        if value is not None and (value < 0 or (is_rate and value > 1)):
            allowed = "from 0 (wrong) to 1 (right)" if is_rate else "0 or more"
            raise DataError(f"{where}: {name}={value:g} cannot be; allowed: {allowed}.")
