"""Does every back end, under every strategy, train what one native process trains?

    python benchmarks/backends.py --data ../shared/data --output benchmarks-output

A small real base learns grade-school mathematics (GSM8K), as each structure: once by one native
process, then by each (training.backend, parallel.strategy) of `support.WAYS` on several processes
(gloo, CPU), on the same rows. Then checkpoints of half the steps are resumed by other back ends.
Counted are the largest differences from the one native process: of losses and gradient norms,
relative; of the trained weights at the end, absolute. For comparison stand beside them the same
process with all rows of a step in one micro-batch, which adds in another order only, and with
another seed, which is a difference that has to be seen.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", DS_ACCELERATOR="cpu")

import torch
from soak import rows_of, start_ranks, wait_for

from controlllm.checkpoint import load_checkpoint, newest_checkpoint
from controlllm.common.errors import ConfigError
from controlllm.train import RunConfig, train
from controlllm.train.config.config_io import merge
from controlllm.train.config.support import WAYS

STRUCTURES: dict[str, dict[str, Any]] = {
    "concat": {},
    "stack": {"expansion": {"structure": "stack"}},
    "hybrid": {"expansion": {"structure": "hybrid"}},
    "ends and gates": {"expansion": {"expand_ends": True, "interpolator": "dlerp"}},
    "proj": {"expansion": {"interpolator": "proj"}},
    "full": {"method": "full"},
    "checkpointing": {"training": {"gradient_checkpointing": True}},
}
COMPARED = {
    "training loss": "train/loss",
    "learn loss": "learn/gsm8k/loss",
    "retain loss": "retain/text/loss",
    "gradient norm": "train/grad_norm",
}
ROWS = 4
"""Of an optimizer step, and lanes of the data: as many as the most processes."""
SECONDS = 400.0
"""After which a run counts as hanging."""


@dataclass(frozen=True)
class Way:
    """How a run is trained.

    Attributes:
        name: what the tables call it.
        processes: how many; 1 needs no launcher.
        over: settings laid over the run's.
    """

    name: str
    processes: int = 1
    over: dict[str, Any] = field(default_factory=dict)


NATIVE = Way("native, 1 process")
CONTROLS = [
    Way("one micro-batch", over={"training": {"per_device_train_batch_size": ROWS}}),
    Way("another seed", over={"training": {"seed": 1}}),
    Way("hf, 1 process", over={"training": {"backend": "hf"}}),
]


def shared(backend: str, strategy: str) -> Way:
    """By several processes: two, or two groups of two."""
    parallel: dict[str, Any] = {"strategy": strategy}
    if strategy == "hsdp":
        parallel["shard_size"] = 2
    processes = 4 if strategy == "hsdp" else 2
    over = {"training": {"backend": backend}, "parallel": parallel}
    return Way(f"{backend} {strategy}, {processes} processes", processes, over)


BACKENDS = tuple(dict.fromkeys(backend for backend, _ in WAYS))
STRATEGIES = tuple(dict.fromkeys(strategy for _, strategy in WAYS))
MATRIX = [shared(backend, strategy) for backend in BACKENDS for strategy in STRATEGIES]
CROSSINGS = [
    (shared("native", "fsdp"), shared("hf", "zero3")),
    (shared("hf", "zero3"), NATIVE),
    (shared("hf", "zero2"), shared("hf", "fsdp")),
    (shared("hf", "ddp"), shared("native", "fsdp")),
    (shared("hf", "hsdp"), shared("native", "ddp")),
    (shared("native", "hsdp"), shared("hf", "zero2")),
    (NATIVE, shared("hf", "zero3")),
]
CROSSED = ("concat", "ends and gates", "full")


class Matrix:
    """Trains one structure in every way, and compares.

    Args:
        options: of the command line.
        structure: which of `STRUCTURES`.
        folder: for the runs.
    """

    def __init__(self, options: argparse.Namespace, structure: str, folder: Path) -> None:
        self.options = options
        self.structure = structure
        self.folder = folder
        self.expected = self.run_of(NATIVE)
        if failure := self._failure(self.expected, NATIVE):
            raise RuntimeError(failure)

    def run_of(self, way: Way, name: str = "", **training: Any) -> RunConfig:
        """The run config of a way; its folder has the way's name."""
        values = merge(base_config(self.options, self.folder), STRUCTURES[self.structure])
        values = merge(values, way.over)
        output = {"output_dir": str(self.folder / (name or way.name))}
        return RunConfig.from_dict(merge(values, {"training": {**output, **training}}))

    def measure(self, way: Way) -> dict[str, Any]:
        """One line of the table: the differences, or why there are none."""
        row = {"structure": self.structure, "way": way.name}
        try:
            run = self.run_of(way)
        except ConfigError as refusal:
            return {**row, "refused": str(refusal)}
        return {**row, **self._trained(run, way)}

    def cross(self, first: Way, second: Way) -> dict[str, Any]:
        """The second half of the steps by another way than the first, which was measured."""
        half = self.options.steps // 2
        checkpoint = Path(self.run_of(first).training.output_dir) / f"checkpoint-{half}"
        name = f"{first.name} -> {second.name}"
        run = self.run_of(second, name, resume_from_checkpoint=str(checkpoint))
        row = {"structure": self.structure, "first half": first.name, "second half": second.name}
        return {**row, **self._trained(run, second, after=half)}

    def _trained(self, run: RunConfig, way: Way, after: int = -1) -> dict[str, Any]:
        if failure := self._failure(run, way):
            return {"failed": failure}
        expected, found = (Path(each.training.output_dir) for each in (self.expected, run))
        try:
            return differences(expected, found, after)
        except ValueError as error:
            return {"failed": str(error)}

    def _failure(self, run: RunConfig, way: Way) -> str | None:
        """Train; None, or how it failed."""

        def call() -> int:
            return int(train(run).stopped_because != "max_steps")

        logs = self.folder / "logs" / Path(run.training.output_dir).name
        return failure_of(call, way.processes, logs)


def base_config(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What all runs have in common."""
    maths = options.data / "sft" / "gsm8k"
    pairs = {"columns": {"prompt": "question", "completion": "answer"}}
    return {
        "model": {"model_name_or_path": str(options.model), "device": "cpu"},
        "expansion": {"num_blocks": 2},
        "data": {
            "train": [{"path": str(maths / "train.jsonl.gz"), **pairs}],
            "learn": [{"path": str(maths / "test.jsonl"), "name": "gsm8k", **pairs}],
            "retain": [{"path": str(folder / "heldout.txt"), "name": "text"}],
            "max_length": options.length,
            "chat_template": "plain",
            "lanes": ROWS,
            "max_eval_samples": 32,
            "cache_dir": str(folder.parent / "cache"),
        },
        "training": {
            "max_steps": options.steps,
            "per_device_train_batch_size": 1,
            "total_train_batch_size": ROWS,
            "learning_rate": options.learning_rate,
            "eval_steps": options.steps // 2,
            "save_steps": options.steps // 2,
            "save_total_limit": None,
            "seed": 0,
        },
        "logging": {"logging_steps": 1, "report_to": ["jsonl"]},
    }


def failure_of(call: Callable[[], int], processes: int, logs: Path) -> str | None:
    """Call it in so many processes of their own; None, or how they failed and what they printed."""
    try:
        codes = wait_for(start_ranks(call, processes, logs), SECONDS)
    except TimeoutError as error:
        return str(error)
    if any(codes):
        printed = [log.read_text().strip() for log in sorted(logs.glob("*.log"))]
        return f"exit codes {codes}: " + "\n".join(text[-2_000:] for text in printed)
    return None


def differences(expected: Path, found: Path, after: int) -> dict[str, float]:
    """The largest ones between two runs, of all that was recorded after a step.

    Raises:
        ValueError: they did not record the same quantities at the same steps.
    """
    result = {}
    ours, theirs = (list(rows_of(folder)) for folder in (expected, found))
    for title, name in COMPARED.items():
        a, b = (
            {row["step"]: row[name] for row in rows if name in row and row["step"] > after}
            for rows in (ours, theirs)
        )
        if a.keys() != b.keys() or not a:
            raise ValueError(f"{name} was recorded at steps {[*a]} and {[*b]}")
        result[title] = max(abs(b[step] - a[step]) / abs(a[step]) for step in a)
    return {**result, **weight_differences(expected, found)}


def weight_differences(expected: Path, found: Path) -> dict[str, float]:
    """Of the trained weights at the end: the largest, and the root of the mean square.

    Raises:
        ValueError: they are not the same tensors, or not after as many steps.
    """
    newest = [newest_checkpoint(folder) for folder in (expected, found)]
    a, b = (load_checkpoint(path) for path in newest if path is not None)
    if a.step != b.step or a.tensors.keys() != b.tensors.keys():
        raise ValueError(f"{expected} and {found} ended with other tensors, or at other steps")
    apart = torch.cat(
        [(b.tensors[name] - tensor).double().flatten() for name, tensor in a.tensors.items()]
    )
    return {
        "weights": apart.abs().max().item(),
        "weights, rms": apart.square().mean().sqrt().item(),
    }


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """One line for each group of rows: the smallest and the largest difference among them."""
    titles = [*COMPARED, "weights", "weights, rms"]
    lines = [f"| {' | '.join([*names, *titles])} |"]
    lines.append(f"|{'---|' * len(names)}{'---:|' * len(titles)}")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "weights" in row:
            groups.setdefault(tuple(row[name] for name in names), []).append(row)
    for key, group in groups.items():
        ranges = []
        for title in titles:
            low, high = (f"{most(row[title] for row in group):.1e}" for most in (min, max))
            ranges.append(high if low == high else f"{low} to {high}")
        lines.append(f"| {' | '.join([*key, *ranges])} |")
    return "\n".join(lines)


def without_numbers(rows: list[dict[str, Any]]) -> str:
    """What was refused, and what failed, with the reason."""
    lines = []
    for row in rows:
        for key in ("refused", "failed"):
            if key in row:
                which = ", ".join(value for name, value in row.items() if name != key)
                lines.append(f"* {which}: {key}: {row[key]}")
    return "\n".join(lines)


def machine() -> str:
    """What it ran on."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.machine()}, {os.cpu_count()} cores, {versions}"


def write_record(output: Path, name: str, **found: Any) -> None:
    """Write what was found into a JSON file, with the commit and the machine."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    record = {"commit": commit.stdout.strip(), "machine": machine(), **found}
    output.mkdir(parents=True, exist_ok=True)
    (output / name).write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--structures", nargs="+", default=[*STRUCTURES], choices=[*STRUCTURES])
    options = parser.parse_args()
    options.model = options.data / "checkpoints" / "stories260k-hf"
    text = (options.data / "text/tinystories_excerpt/tinystories.txt").read_text()[-6_000:]

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows: list[dict[str, Any]] = []
    crossings: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for structure in options.structures:
            folder = Path(name) / structure.replace(" ", "-")
            folder.mkdir()
            (folder / "heldout.txt").write_text(text)
            matrix = Matrix(options, structure, folder)
            for way in [*CONTROLS, *MATRIX]:
                rows.append(matrix.measure(way))
                print(json.dumps(rows[-1]), flush=True)
            for pair in CROSSINGS if structure in CROSSED else []:
                crossings.append(matrix.cross(*pair))
                print(json.dumps(crossings[-1]), flush=True)
    write_record(options.output, "backends.json", rows=rows, crossings=crossings)
    shared_rows = [row for row in rows if row["way"] in {way.name for way in MATRIX}]
    pages = [
        table(rows, ["way"]),
        table(shared_rows, ["structure"]),
        table(crossings, ["first half", "second half"]),
        without_numbers([*rows, *crossings]),
    ]
    print(*pages, sep="\n\n")


if __name__ == "__main__":
    main()
