"""Does packing train as padding does, on a real mix with replay? And is eval the same for both?

    python benchmarks/data_mix.py --data ../shared/data --output benchmarks-output

Base: stories260k. Mix: GSM8K, Dolly, Chinese short answers and Shakespeare as plain text, weighted
in tokens, with a tenth of TinyStories replayed. Each of four ways to make batches trains the same
model for the same steps on about the same tokens a step; then `controlllm eval` (the command)
measures each result twice, on packed and on padded batches, which must give one number.
Prints two tables and writes `data-mix.json`.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from data_rows import machine, shown

from controlllm.cli import main as controlllm
from controlllm.evaluate import format_table
from controlllm.train import RunConfig, train

LENGTH, ROWS = 512, 8
WAYS: dict[str, dict[str, Any]] = {
    "best fit": {"packing": True},
    "concat": {"packing": True, "packing_strategy": "concat"},
    "fixed": {"packing": True, "packing_strategy": "fixed"},
    "padded, by length": {"packing": False, "max_tokens_per_batch": LENGTH * ROWS},
}


def source(path: Path, name: str, **settings: Any) -> dict[str, Any]:
    return {"path": str(path), "name": name, **settings}


def sources(data: Path) -> dict[str, Any]:
    qa = {"columns": {"prompt": "question", "completion": "answer"}}
    zh = data / "sft/chat_dataset_zh_extra/code_qa_zh.json.gz"
    dolly = data / "sft/dolly2k/dolly_train.json.gz"
    stories = data / "text/tinystories_excerpt/tinystories.txt"
    unit = {"text_unit": "paragraph"}
    short = {"group_by": "instruction", "on_bad_row": "skip"}
    return {
        "train": [
            source(data / "sft/gsm8k/train.jsonl.gz", "gsm8k", weight=3, **qa),
            source(dolly, "dolly", weight=2, part="train"),
            source(zh, "chinese", part="train", **short),
            source(data / "text/tinyshakespeare/input.txt", "shakespeare", part="train", **unit),
        ],
        "replay": [source(stories, "stories", part="train", **unit)],
        "replay_share": 0.1,
        "learn": [
            source(data / "sft/gsm8k/test.jsonl", "gsm8k", max_rows=100, **qa),
            source(dolly, "dolly", part="held_out"),
            source(zh, "chinese", part="held_out", max_rows=1500, **short),
            source(
                data / "text/tinyshakespeare/input.txt",
                "shakespeare",
                part="held_out",
                max_rows=2000,
                **unit,
            ),
        ],
        "retain": [source(stories, "stories", part="held_out", held_out=0.05, **unit)],
        "max_length": LENGTH,
    }


def run_config(data: Path, folder: Path, way: str, seed: int, steps: int) -> RunConfig:
    return RunConfig.from_dict(
        {
            "model": {"model_name_or_path": str(data / "checkpoints/stories260k-hf")},
            "expansion": {"layers": [0, 1, 2, 3, 4], "expand_ends": True},
            "data": {**sources(data), **WAYS[way]},
            "training": {
                "output_dir": str(folder),
                "max_steps": steps,
                "learning_rate": 3e-3,
                "per_device_train_batch_size": ROWS,
                "eval_steps": steps,
                "save_steps": steps,
                "seed": seed,
            },
            "logging": {"report_to": ["jsonl"]},
        }
    )


def last(history: list[dict[str, Any]], key: str) -> float:
    return float(next(row[key] for row in reversed(history) if key in row))


def evaluated(folder: Path, packing: bool) -> dict[str, float]:
    """The losses that the command `controlllm eval` gives for a run."""
    report = folder / f"eval-{packing}.json"
    words = ["eval", str(folder), "--output", str(report), "--data.packing", str(packing).lower()]
    words += ["--data.max_tokens_per_batch", "null"]
    if controlllm(words):
        raise SystemExit(f"controlllm {' '.join(words)} failed")
    found = json.loads(report.read_text())["losses"]
    return {name: values["loss"] for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder shared/data")
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    rows, records, differences = [], [], []
    for way in options.ways:
        results = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "run"
                result = train(run_config(options.data, folder, way, seed, options.steps))
                packed, padded = (evaluated(folder, packing) for packing in (True, False))
            differences += [abs(packed[name] - padded[name]) for name in packed]
            results.append(
                {
                    **{f"{name} loss": loss for name, loss in packed.items()},
                    "in training": last(result.history, "learn/gsm8k/loss"),
                    "train loss": last(result.history, "train/loss"),
                    "tokens": last(result.history, "train/tokens"),
                    "efficiency": last(result.history, "train/packing_efficiency"),
                }
            )
            print(way, seed, results[-1], flush=True)
        records.append({"way": way, "seeds": results})
        rows.append([way, *(shown([r[key] for r in results], 3) for key in results[0])])
    print(format_table(["batches", *records[0]["seeds"][0]], rows))
    print(f"largest difference of packed and padded eval: {max(differences):.2e} nats")
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine(),
        "steps": options.steps,
        "ways": records,
        "largest_difference": max(differences),
    }
    (options.output / "data-mix.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
