"""What is left of each task after three in a row? Four ways to go on, and plain full tuning.

    python -m benchmarks.sequences run --data ../shared/data --output benchmarks-output/sequences
    python -m benchmarks.sequences table --output benchmarks-output/sequences

Bases: stories260k, and the base that ships with the demo. Tasks, in this order: GSM8K, Shakespeare,
Dolly. Each stage takes the same steps; `joint` takes those of all stages. What is there is not done
again: a run that was killed goes on where it was, and a matrix that is written is not measured
again. Own text is written by the base for the measurement only; real old text (TinyStories) and a
third domain (WikiText) chose nothing and are told beside it.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.origin import about
from benchmarks.study.texts import base_path, write_kept, write_shift
from transformers import PreTrainedTokenizerBase

from controlllm.checkpoint import load_model
from controlllm.common.storage.files import write_json
from controlllm.data import DataConfig, SourceConfig, eval_batches
from controlllm.evaluate import format_table
from controlllm.evaluate.own_text import OwnTextConfig, Writer, write_own_text
from controlllm.evaluate.sequence.measuring import measure_sequence
from controlllm.evaluate.sequence.tables import matrix_record
from controlllm.expansion.files.records import BASE
from controlllm.train import RunConfig, train

TASKS = ("gsm8k", "shakespeare", "dolly")
WAYS = ("one", "branch", "fold", "full")
"""And `joint`, which is a column of each matrix."""
LENGTH = 256
ROWS = 64
"""Rows of each text that are measured, at most."""
NUMBERS = ("ACC", "BWT", "FWT", "F", "intransigence")
BASES = ("stories260k", "demo")
RATES = {"full": 1e-3}
"""Peak learning rates; else 3e-3."""


def make_files(data: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Texts to train on and held-out ones of each task, and of what is only measured."""
    files = {task: write_shift(task, data, folder, chat=False, most=None) for task in TASKS}
    kept = {"old": "tinystories", "third": "wikipedia"}
    told = {name: write_kept(text, data, folder, chat=False)[text] for name, text in kept.items()}
    return files | {name: {"told": path} for name, path in told.items()}


def run_config(
    options: argparse.Namespace, base: str, way: str, task: str, before: Path | None, folder: Path,
    files: dict[str, dict[str, str]], seed: int,
) -> RunConfig:  # fmt: skip
    """One stage, from the stage before or from the base."""
    steps = options.steps * (len(TASKS) if way == "joint" else 1)
    values: dict[str, Any] = {
        "data": {
            "train": [{"path": files[task]["train"]}],
            "learn": [{"path": files[task]["chosen"]}],
            "max_length": LENGTH,
        },
        "own_text": {"measure": False},  # measured for all stages alike, at the end
        "training": {
            "output_dir": str(folder),
            "seed": seed,
            "max_steps": steps,
            "learning_rate": RATES.get(way, 3e-3),
            "per_device_train_batch_size": 4,
            "min_lr_rate": 0.1,
            "warmup_steps": 20,
            "eval_steps": 10**6,
            "save_steps": 100,
        },
        "logging": {"report_to": ["jsonl"]},
    }
    if way == "full":
        model = base if before is None else str(before)
        values |= {"method": "full", "model": {"model_name_or_path": model}}
    else:
        values |= {"preset": "retain", "rehearsal": {"num_sequences": 128, "length": 128}}
        if before is None:
            depth = len(load_model(base)[0].get_decoder().layers)
            values["model"] = {"model_name_or_path": base}
            values["expansion"] = {"layers": list(range(depth))}
        else:
            values |= {"continue_from": str(before), "continue_by": way, "continue_trust": True}
    return RunConfig.from_dict(values)


def run_one(options: argparse.Namespace, name: str, seed: int, way: str) -> None:
    """Train the stages of one way, and measure them; what is there is not done again."""
    folder = Path(options.output) / name / str(seed)
    result = folder / f"{way}.json"
    if result.is_file():
        return
    data = Path(options.data)
    files = make_files(data, Path(options.output) / "texts")
    base = base_path(name, data)
    before: Path | None = None
    stages: dict[str, Path] = {}
    for number, task in enumerate(TASKS):
        # The first stage is the same for all ways that expand the base.
        own = "full" if way == "full" else way if number else "first"
        stages[task] = folder / own / task
        config = run_config(options, base, way, task, before, stages[task], files, seed)
        done = stages[task] / f"checkpoint-{config.training.max_steps}" / "manifest.json"
        if not done.is_file():
            train(config)
        before = stages[task]
    joint = folder / "joint" / "all"
    if way != "full" and not list(joint.glob("checkpoint-*/manifest.json")):
        last = run_config(
            options, base, "joint", TASKS[-1], folder / "one" / TASKS[-2], joint, files, seed
        )
        train(last)
    measured = measure(base, stages, joint if way != "full" else None, files, options)
    write_json(
        result,
        measured
        | {"way": way, "base": name, "seed": seed, "steps": options.steps, "about": about()},
    )


def measure(
    base: str, stages: dict[str, Path], joint: Path | None, files: dict[str, dict[str, str]],
    options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    model, tokenizer = load_model(base)
    data = DataConfig(max_length=LENGTH)
    own = write_own_text(
        Writer.base(model),
        tokenizer,
        OwnTextConfig(measure=True, num_sequences=128, length=LENGTH, chat=False),
        data,
        Path(options.output) / "own_text",
    )
    kept = {name: eval_batches(texts, tokenizer, data, 8) for name, texts in own.items()}
    kept |= {name: _batches(files[name]["told"], tokenizer) for name in ("old", "third")}
    tasks = {task: _batches(files[task]["told"], tokenizer) for task in TASKS}

    def load(path: Path) -> Any:
        return load_model(path)[0]

    loaders = {task: partial(load, path) for task, path in stages.items()}
    together = None if joint is None else partial(load, joint)
    matrix, reports = measure_sequence(model, loaders, tasks, kept, together)
    return matrix_record(matrix, reports)


def _batches(path: str, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    data = DataConfig(max_length=LENGTH)
    return eval_batches(SourceConfig(path=path), tokenizer, data, 8, limit=ROWS)


def results(output: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(output.glob("*/*/*.json")):
        if path.parent.parent.name in BASES:
            yield json.loads(path.read_text())


def tables(output: Path) -> str:
    """Means over seeds and their spread (half the range), for each base and way."""
    found = list(results(output))
    parts = []
    for name in BASES:
        rows = []
        for way in WAYS:
            same = [one for one in found if (one["base"], one["way"]) == (name, way)]
            if same:
                kept = [one["kept"][TASKS[-1]] for one in same]
                rows.append(
                    [
                        way,
                        len(same),
                        *(
                            _spread([one["losses"][TASKS[-1]][task] for one in same])
                            for task in TASKS
                        ),
                        *(
                            _spread([_number(one, number) for one in same])
                            for number in NUMBERS[1:]
                        ),
                        _spread([one["own_text"]["kl"] for one in kept]),
                        *(
                            _spread([one[each]["forgetting"] for one in kept])
                            for each in ("old", "third")
                        ),
                    ]
                )
        if rows:
            base = found_of(found, name)["losses"][BASE]
            rows.insert(0, ["base", "-", *(f"{base[task]:.3f}" for task in TASKS), *["-"] * 7])
            joint = [one["joint"] for one in found if one["base"] == name and one["way"] == "one"]
            told = [_spread([one[task] for one in joint]) for task in TASKS] if joint else []
            if told:
                rows.append(["joint", len(joint), *told, *["-"] * 7])
            headers = ["way", "seeds", *TASKS, *NUMBERS[1:]]
            headers += ["KL on own text", "old text +", "third +"]
            parts.append(f"{name}\n\n{format_table(headers, rows)}")
    return "\n\n".join(parts)


def found_of(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(one for one in found if one["base"] == name)


def _number(record: dict[str, Any], name: str) -> float | None:
    value = record[name]
    return value if isinstance(value, float | None) else value["estimate"]


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    half = (max(known) - min(known)) / 2
    return f"{statistics.mean(known):.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--output", default="benchmarks-output/sequences")
    parser.add_argument("--bases", nargs="+", default=[*BASES], choices=[*BASES])
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=WAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    if options.what == "run":
        for seed in options.seeds:
            for name in options.bases:
                for way in options.ways:
                    run_one(options, name, seed, way)
    print(f"{about()}\n\n{tables(Path(options.output))}")


if __name__ == "__main__":
    main()
