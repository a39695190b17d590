"""What do worker processes bring? Batches per second by the clock with 0, 1 and 2 of them.

    python benchmarks/data_workers.py --data ../shared/data --output benchmarks-output

Real chat rows, from the file to packed batches of 8 x 2,048 tokens. `idle`: the main process only
draws. `busy`: after each batch it computes for as long as a batch takes without workers, as a
training step would on its own core; a worker that hides all of its work doubles the speed. Each
round also measures what two processes that only compute get done against one (`cores`): others use
this machine, too, and where that is not 2.0 no worker can bring a factor of 2.
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


def measure(
    path: Path, tokenizer: PreTrainedTokenizerBase, workers: int, batches: int, work: float
) -> float:
    """Seconds for each batch, with `work` seconds of computing after each."""
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
    started = time.perf_counter()
    for _ in range(batches):
        next(loader)
        compute(work)
    return (time.perf_counter() - started) / batches


def compute(seconds: float) -> None:
    """Use up so many seconds of this process's time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


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


def table(results: dict[str, list[float]]) -> str:
    text = "| main process | workers | ms for each batch | speed to 0 workers |\n"
    text += "|---|---:|---:|---:|\n"
    for name, seconds in results.items():
        kind, workers = name.split("/")
        ratios = [a / b for a, b in zip(results[f"{kind}/0"], seconds, strict=True)]
        text += f"| {kind} | {workers} | {shown([s * 1000 for s in seconds], 1)} "
        text += f"| {shown(ratios)} |\n"
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
    results: dict[str, list[float]] = defaultdict(list)
    cores = []
    with work_folder(options.data_dir) as folder:
        path = Path(folder) / f"workers-{ROWS}.jsonl"
        if not path.exists():
            write_jsonl(short_rows(options.data), path, ROWS)
        measure(path, tokenizer, 0, WARM, 0.0)
        for _ in range(options.repetitions):
            cores.append(usable_cores())
            alone = measure(path, tokenizer, 0, options.batches, 0.0)
            for kind, work in (("idle", 0.0), ("busy", alone)):
                for workers in (0, 1, 2):
                    seconds = measure(path, tokenizer, workers, options.batches, work)
                    results[f"{kind}/{workers}"].append(seconds)
    text = f"cores: {shown(cores)}\n\n" + table(results)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine(),
        "command": sys.argv,
        "cores": cores,
        "results": {name: {**spread(v), "values": v} for name, v in results.items()},
    }
    target = options.output / "data_workers.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    target.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
