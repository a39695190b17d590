"""What does each method learn, and what does it forget? A real base, a real new domain, one table.

    python benchmarks/learn_and_forget.py --data ../shared/data --output benchmarks-output

Base: stories260k (old domain: TinyStories). New domain: Shakespeare, or `--domain gsm8k`.
Every method gets the same number of steps and tokens per step, its own learning rates (all that
were tried are in the table), and its own dial: alpha for expanded models, averaging with the base
for full tuning. Prints a table and writes `learn_and_forget-DOMAIN.json` and `.png`.
"""

import argparse
import gzip
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from controlllm.data import DataConfig, SourceConfig, eval_batches
from controlllm.evaluate import (
    Reference,
    averaging_curve,
    calibrate,
    format_table,
    measure_retention,
    plot_curves,
)
from controlllm.train import RunConfig, train

BUDGET = 0.05
REHEARSAL = {"num_sequences": 256, "share": 0.125, "loss": "kl", "length": 256}

METHODS: dict[str, dict[str, Any]] = {
    "full tuning": {"method": "full"},
    "full tuning + self-rehearsal KL": {"method": "full", "rehearsal": REHEARSAL},
    "full tuning + replay 1/8": {"method": "full", "data": {"replay_share": 0.125}},
    "stack": {"expansion": {"structure": "stack", "layers": [0, 1, 2, 3, 4], "divergence": "none"}},
    "paper": {"preset": "paper", "expansion": {"layers": [0, 1, 2, 3, 4]}},
    "retain": {
        "preset": "retain",
        "expansion": {"layers": [0, 1, 2, 3, 4]},
        "rehearsal": {"length": 256},
    },
    "retain + replay 1/8": {
        "preset": "retain",
        "expansion": {"layers": [0, 1, 2, 3, 4]},
        "rehearsal": {"num_sequences": 0},
        "data": {"replay_share": 0.125},
    },
}


def shakespeare(data: Path, folder: Path) -> dict[str, Path]:
    """Nine tenths of the text to train on, the end of it held out."""
    text = (data / "text/tinyshakespeare/input.txt").read_text()
    cut = int(len(text) * 0.9)
    return {
        "train": write(folder / "shakespeare.txt", text[:cut]),
        "learn": write(folder / "shakespeare-heldout.txt", text[cut : cut + 30_000]),
    }


def gsm8k(data: Path, folder: Path) -> dict[str, Path]:
    """The data set's own train and test split, question and answer as plain text."""

    def plain(lines: list[str]) -> str:
        rows = map(json.loads, lines)
        return "\n\n".join(f"{row['question']}\n{row['answer']}" for row in rows)

    packed = (data / "sft/gsm8k/train.jsonl.gz").read_bytes()
    train_rows = gzip.decompress(packed).decode().splitlines()
    test_rows = (data / "sft/gsm8k/test.jsonl").read_text().splitlines()[:100]
    return {
        "train": write(folder / "gsm8k.txt", plain(train_rows)),
        "learn": write(folder / "gsm8k-heldout.txt", plain(test_rows)),
    }


def stories(data: Path, folder: Path) -> dict[str, Path]:
    """TinyStories: half for replay, a part of the other half held out."""
    text = (data / "text/tinystories_excerpt/tinystories.txt").read_text()
    half = len(text) // 2
    return {
        "replay": write(folder / "stories.txt", text[:half]),
        "retain": write(folder / "stories-heldout.txt", text[half : half + 30_000]),
    }


DOMAINS: dict[str, Callable[[Path, Path], dict[str, Path]]] = {
    "shakespeare": shakespeare,
    "gsm8k": gsm8k,
}


LESSON = {"per_device_train_batch_size": 4, "min_lr_rate": 0.1, "warmup_steps": 20}
"""How a small base is taught, in these scripts: what does not depend on the method."""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def run_config(
    options: argparse.Namespace,
    files: dict[str, Path],
    values: dict[str, Any],
    learning_rate: float,
    seed: int,
    folder: Path,
) -> RunConfig:
    """One method as a run config."""
    data = {"train": [{"path": str(files["train"])}], "max_length": 256, **values.get("data", {})}
    if data.get("replay_share"):
        data["replay"] = [{"path": str(files["replay"])}]
    training = {
        "output_dir": str(folder / "run"),
        "overwrite_output_dir": True,
        "resume_from_checkpoint": "never",
        "seed": seed,
        "max_steps": options.steps,
        "learning_rate": learning_rate,
        **LESSON,
        "eval_steps": 10**6,
        "save_steps": 10**6,
    }
    return RunConfig.from_dict(
        {
            **values,
            "data": data,
            "training": training,
            "model": {"model_name_or_path": str(options.base), "attn_implementation": "sdpa"},
            "logging": {"report_to": ["jsonl"]},
        }
    )


def measure(options: argparse.Namespace, files: dict[str, Path], run: RunConfig) -> dict[str, Any]:
    """Train, then measure both domains at the end and along the method's own dial."""
    started = time.perf_counter()
    model = train(run).model
    seconds = time.perf_counter() - started
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    sets = {
        name: {
            name: eval_batches(
                SourceConfig(path=str(files[name])), tokenizer, DataConfig(max_length=256), 8
            )
        }
        for name in ("learn", "retain")
    }
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    base = None
    if run.method == "full":
        base = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32)
    reference = Reference(model, copy=base)
    reports = {n: measure_retention(model, sets[n][n], reference=reference) for n in sets}
    curve_of = (
        calibrate(model, sets["learn"], sets["retain"], max_forgetting=BUDGET)
        if base is None
        else averaging_curve((base, model), sets["learn"], sets["retain"], max_forgetting=BUDGET)
    )
    return {
        "base_old_loss": reports["retain"].base_loss,
        "base_new_loss": reports["learn"].base_loss,
        "new_loss": reports["learn"].loss,
        "forgetting": reports["retain"].forgetting,
        "kl": reports["retain"].kl,
        "new_loss_within_budget": curve_of.chosen.learn_loss,
        "forgetting_within_budget": curve_of.chosen.forgetting,
        "dial": curve_of.chosen.alpha,
        "trained_parameters": trained,
        "seconds": seconds,
        "curve": curve_of,
    }


def table(results: list[dict[str, Any]]) -> str:
    head = ["method", "lr", "seed", "new loss", "forgetting", "KL", "dial"]
    head += [f"new loss at <= {BUDGET}", "forgetting there", "trained", "seconds"]
    rows = [
        [
            r["method"],
            f"{r['learning_rate']:g}",
            r["seed"],
            f"{r['new_loss']:.3f}",
            f"{r['forgetting']:+.3f}",
            f"{r['kl']:.3f}",
            f"{r['dial']:.3f}",
            f"{r['new_loss_within_budget']:.3f}",
            f"{r['forgetting_within_budget']:+.3f}",
            r["trained_parameters"],
            f"{r['seconds']:.0f}",
        ]
        for r in results
    ]
    return format_table(head, rows)


def about() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--base", type=Path, help="default: stories260k-hf in --data")
    parser.add_argument("--domain", choices=sorted(DOMAINS), default="shakespeare")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    options = parser.parse_args()
    options.base = options.base or options.data / "checkpoints/stories260k-hf"
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    origin = about()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = DOMAINS[options.domain](options.data, folder) | stories(options.data, folder)
        for seed in options.seeds:
            for method in options.methods:
                for rate in options.learning_rates:
                    run = run_config(options, files, METHODS[method], rate, seed, folder)
                    row = {"method": method, "learning_rate": rate, "seed": seed}
                    results.append(row | measure(options, files, run))
                    print(table(results[-1:]), flush=True)
    best: dict[str, dict[str, Any]] = {}
    for row in results:
        kept = best.setdefault(row["method"], row)
        if row["new_loss_within_budget"] < kept["new_loss_within_budget"]:
            best[row["method"]] = row
    plot_curves(
        {method: row["curve"] for method, row in best.items()},
        options.output / f"learn_and_forget-{options.domain}.png",
    )
    plain = [row | {"curve": row["curve"].to_dict()} for row in results]
    report = {"about": origin, "steps": options.steps, "results": plain}
    path = options.output / f"learn_and_forget-{options.domain}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(table(results))
    first = results[0]
    print(f"base: old loss {first['base_old_loss']:.3f}, new loss {first['base_new_loss']:.3f}")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
