"""What does the loss cost over a large vocabulary: all logits at once, ours in chunks, or torch's?

    python benchmarks/large_vocabulary.py --output benchmarks-output

Random hidden states, a random head, forward and backward, one thread; one process per way and
round. *Seconds* are those of the process, *MiB* its peak above what it held before (`VmHWM`). The
head trains, or it is frozen as under `method: control` without expanded ends.

| way | what runs |
|---|---|
| `all logits` | `linear`, then `cross_entropy` |
| `ours` | `loss_chunk_size`: `controlllm.train.step.head` |
| `torch` | `torch.nn.functional.linear_cross_entropy` with the same chunks (torch 2.13) |
"""

import argparse
import ctypes
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1")

import torch
import torch.nn.functional as F
from data_rows import memory, reset_peak, shown
from torch import Tensor, nn
from train_step import M_MMAP_THRESHOLD, measured_apart, write_record

WAYS = ("all logits", "ours", "torch")


def measure(options: argparse.Namespace, way: str, trained: bool) -> dict[str, float]:
    """One way, in this process."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    torch.manual_seed(0)
    model = Head(options.width, options.vocabulary).requires_grad_(trained)
    labels = torch.randint(options.vocabulary, (1, options.positions + 1))
    hidden = torch.randn(1, options.positions + 1, options.width, requires_grad=True)
    reset_peak()
    before, begin = memory("VmRSS"), time.process_time()
    loss = loss_by(way, hidden, model, labels, options.chunk)
    loss.backward()
    seconds = time.process_time() - begin
    found = {"seconds": seconds, "mib": memory("VmHWM") - before, "loss": loss.item()}
    assert hidden.grad is not None
    return {**found, "gradient": hidden.grad.norm().item()}


class Head(nn.Module):
    """What the loss asks of a model: its head."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, vocabulary, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def loss_by(way: str, hidden_BTD: Tensor, model: Any, labels_BT: Tensor, chunk: int) -> Tensor:
    """The summed loss by one of `WAYS`."""
    if way == "ours":
        from controlllm.train.step.head import chunked_cross_entropy_sum

        return chunked_cross_entropy_sum(hidden_BTD, model, labels_BT, chunk)
    given, targets = hidden_BTD[0, :-1], labels_BT[0, 1:]
    if way == "torch":
        chunks = nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
        return F.linear_cross_entropy(
            given, model.head.weight, targets, reduction="sum", options=chunks
        )
    return F.cross_entropy(model.head(given).float(), targets, reduction="sum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks-output"))
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        way, trained = options.measure
        print(json.dumps(measure(options, way, trained == "trained")))
        return
    results: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(options.repetitions):
        for head in ("frozen", "trained"):
            for way in WAYS:
                results[f"{way}, {head}"].append(measured_apart(way, head))
    text = "| way, head | s | to all logits | MiB | to all logits | loss, gradient |\n"
    text += "|---|---:|---:|---:|---:|---:|\n"
    for name, runs in results.items():
        rivals = results[f"all logits, {name.rsplit(', ')[1]}"]
        cells = []
        for what, digits in (("seconds", 2), ("mib", 0)):
            cells.append(shown([run[what] for run in runs], digits))
            pairs = zip(runs, rivals, strict=True)
            cells.append(shown([a[what] / b[what] for a, b in pairs]))
        cells.append(f"{runs[0]['loss']:,.1f}, {runs[0]['gradient']:.4f}")
        text += f"| {name} | {' | '.join(cells)} |\n"
    print(text)
    write_record(options.output, "large-vocabulary", text, results)


if __name__ == "__main__":
    main()
