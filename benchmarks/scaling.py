"""What do two processes that share a model lose against two that know nothing of one another?

    python benchmarks/scaling.py --data ../shared/data --output benchmarks-output

Two processes with one thread each train the same expanded model (random weights) on batches of the
same size: each a model of its own (no communication, the limit), or one model together, by FSDP2,
by FSDP2 that keeps gathered blocks until backward, or as copies (`ddp`). Seconds are those of the
clock, of a step, the median over the steps but the first two and the larger of both processes;
efficiency is the limit's seconds divided by theirs, round by round.
"""

import argparse
import json
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", GLOO_SOCKET_IFNAME="lo")

from data_rows import shown
from train_step import (
    WARM_UP,
    add_shape,
    by_processes,
    gloo,
    make_base,
    run_of,
    write_record,
)

RANKS = 2
WAYS: dict[str, dict[str, Any] | None] = {
    "apart": None,
    "fsdp": {"strategy": "fsdp"},
    "fsdp, kept for backward": {"strategy": "fsdp", "reshard_after_forward": False},
    "ddp": {"strategy": "ddp"},
}


def train_once(options: argparse.Namespace, way: str, rank: int, folder: Path) -> None:
    """Train, and write what a step took."""
    import torch

    from controlllm.train import train
    from controlllm.train.config.parallel_config import ParallelConfig

    torch.set_num_threads(1)
    parallel = WAYS[way]
    run = run_of(options, "native", str(folder / ("run" if parallel else f"run-{rank}")))
    run.parallel = ParallelConfig(**(parallel or {}))
    run.training.per_device_train_batch_size = options.rows
    with gloo(rank, RANKS if parallel else 1, folder):
        history = train(run, make_base(options)).history
    seconds = [row["train/step_seconds"] for row in history if "train/loss" in row]
    (folder / f"{rank}.json").write_text(json.dumps(statistics.median(seconds[WARM_UP:])))


def measure(options: argparse.Namespace, way: str) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        by_processes(partial(train_once, options, way), RANKS, options.data, folder)
        return max(json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shape(parser, layers=8)
    parser.add_argument("--rows", type=int, default=4, help="of 256 tokens, for each process")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    results: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(options.repetitions):
        for way, seconds in results.items():
            seconds.append(measure(options, way))
        print(f"round {number + 1} of {options.repetitions} done", flush=True)
    text = "| way | s a step | efficiency |\n|---|---:|---:|\n"
    for way, seconds in results.items():
        pairs = zip(results["apart"], seconds, strict=True)
        text += f"| {way} | {shown(seconds)} | {shown([a / b for a, b in pairs])} |\n"
    print(text)
    write_record(options.output, "scaling", text, results)


if __name__ == "__main__":
    main()
