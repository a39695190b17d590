"""What the peers' reader scripts share. Needs numpy and torch only: it runs in their environments.

Each script is called as

    python peers/NAME.py --tokens FOLDER --work FOLDER --length 2048 --batch 8 --seconds 2

`--tokens` holds `ids.npy` (int32, all documents one after the other) and `ends.npy` (where each
ends). The script writes its library's own format into `--work` unless it is there, reads shuffled
batches of int64 `input_ids` and `labels` (B, T), and prints one JSON object for each way of
reading.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

WARM = 50
"""Batches that are drawn before the clock starts."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return options


def documents(options: argparse.Namespace) -> Iterator[np.ndarray]:
    ids = np.load(options.tokens / "ids.npy", mmap_mode="r")
    start = 0
    for end in np.load(options.tokens / "ends.npy"):
        yield ids[start:end]
        start = end


def chunks(options: argparse.Namespace) -> np.ndarray:
    """All tokens in rows of `length`, without regard to documents (rows, T)."""
    ids = np.load(options.tokens / "ids.npy", mmap_mode="r")
    rows = len(ids) // options.length
    return ids[: rows * options.length].reshape(rows, options.length)


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def training_batch(input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a step needs at least: int64 ids, and labels of their own."""
    input_ids = input_ids.long()
    return {"input_ids": input_ids, "labels": input_ids.clone()}


def measure(
    name: str,
    options: argparse.Namespace,
    batches: Iterator[Any],
    tokens: Callable[[Any], int] = lambda batch: batch["input_ids"].numel(),
    **notes: Any,
) -> None:
    """Draw batches and print tokens per second, by the clock and by the process's time."""
    for _ in range(WARM):
        first = next(batches)
    assert first["input_ids"].dtype == torch.int64
    assert first["labels"].dtype == torch.int64
    started, used, total = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < options.seconds:
        total += tokens(next(batches))
    seconds, used = time.perf_counter() - started, time.process_time() - used
    shape = list(first["input_ids"].shape)
    record = {"name": name, "tokens": total, "seconds": seconds, "cpu_seconds": used}
    print(json.dumps({**record, "shape": shape, **notes}), flush=True)
