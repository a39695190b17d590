"""What do worker processes take off the training process? Time of each with 0, 1 and 2 of them.

    python benchmarks/data_workers.py --data ../shared/data --output benchmarks-output

Real rows, from the file to packed batches of 8 x 2,048 tokens; the main process only draws. By the
clock, and by the processes' own time: `main` is what the training process itself spends on a batch
(what is left of the loader beside a GPU), `workers` what all of them do. Each round also measures
what two processes that only compute get done against one (`cores`): others use this machine, too,
and where that is not 2.0 no worker can bring a factor of 2 by the clock.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

os.environ.update(
    OMP_NUM_THREADS="1",
    RAYON_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
)

import torch
from data_rows import machine, short_rows, shown, spread, work_folder, write_jsonl
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from controlllm.data import DataConfig, SourceConfig, TrainLoader

ROWS = 200_000
WARM = 10

Measured = dict[str, float]
"""Milliseconds for each batch: by the `clock`, of the `main` process, of all `workers`."""


def measure(path: Path, tokenizer: PreTrainedTokenizerBase, workers: int, batches: int) -> Measured:
    config = DataConfig(
        train=[SourceConfig(path=str(path))],
        max_length=2048,
        chat_template="plain",
        num_workers=workers,
        cache_dir=str(path.parent / "cache"),
    )
    loader = TrainLoader(config, tokenizer, batch_size=8, seed=0)
    for _ in range(WARM):
        next(loader)
    children = [int(child.pid or 0) for child in multiprocessing.active_children()]
    clock, main, others = time.perf_counter(), time.process_time(), sum(map(cpu_seconds, children))
    for _ in range(batches):
        next(loader)
    return {
        "clock": (time.perf_counter() - clock) / batches * 1000,
        "main": (time.process_time() - main) / batches * 1000,
        "workers": (sum(map(cpu_seconds, children)) - others) / batches * 1000,
    }


def cpu_seconds(pid: int) -> float:
    """The time a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spin(seconds: float) -> int:
    """How many turns of a loop this process makes in so many seconds."""
    turns, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        turns += 1
    return turns


def usable_cores(seconds: float = 1.0) -> float:
    """What two processes get done in the same time as one."""
    alone = spin(seconds)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return sum(pool.map(spin, [seconds, seconds])) / alone


def table(results: dict[int, list[Measured]]) -> str:
    text = "| workers | clock, ms a batch | speed to 0 workers | main, ms | workers, ms |\n"
    text += "|---:|---:|---:|---:|---:|\n"
    for workers, runs in results.items():
        ratios = [a["clock"] / b["clock"] for a, b in zip(results[0], runs, strict=True)]
        parts = [shown([run[name] for run in runs], 1) for name in ("clock", "main", "workers")]
        text += f"| {workers} | {parts[0]} | {shown(ratios)} | {parts[1]} | {parts[2]} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data")
    parser.add_argument("--data_dir", type=Path, help="where files are made and kept")
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--batches", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(options.data / "tokenizers/minimind6400")
    results: dict[int, list[Measured]] = defaultdict(list)
    cores = []
    with work_folder(options.data_dir) as folder:
        path = Path(folder) / f"workers-{ROWS}.jsonl"
        if not path.exists():
            write_jsonl(short_rows(options.data), path, ROWS)
        measure(path, tokenizer, 0, WARM)
        for _ in range(options.repetitions):
            cores.append(usable_cores())
            for workers in (0, 1, 2):
                results[workers].append(measure(path, tokenizer, workers, options.batches))
    text = f"cores: {shown(cores)}\n\n" + table(results)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine(),
        "command": sys.argv,
        "cores": cores,
        "results": {
            workers: {
                name: {**spread([run[name] for run in runs]), "values": [r[name] for r in runs]}
                for name in runs[0]
            }
            for workers, runs in results.items()
        },
    }
    target = options.output / "data_workers.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    target.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
