"""What does a checkpoint cost: bytes, and seconds that training stands still?

    python benchmarks/checkpoint_cost.py --data ../shared/data --output benchmarks-output

One base (random weights), expanded or tuned as a whole, trained for some steps by one process, and
by two with FSDP2 (gloo, forked). Compared are the bytes of the checkpoints (trained tensors, their
moments, the rest), and the seconds for which `save` holds the loop up with those until the
checkpoint is whole. One thread a process.
"""

import argparse
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", GLOO_SOCKET_IFNAME="lo")

from data_rows import shown
from train_step import add_shape, by_processes, gloo, make_base, run_of, write_record

from controlllm.common.storage.files import folder_bytes


def train_once(options: argparse.Namespace, way: str, ranks: int, rank: int, folder: Path) -> None:
    """Train and time every save; the first rank writes what it saw."""
    import torch

    from controlllm.checkpoint.training.writer import CheckpointWriter
    from controlllm.train import train

    torch.set_num_threads(1)
    held_up, begun, until_whole = list[float](), list[float](), list[float]()
    save, finish = CheckpointWriter.save, CheckpointWriter.finish

    def timed_save(self: Any, state: Any) -> Any:
        if self.is_running:
            timed_finish(self)  # The wait for an earlier one is not this one's.
        begun.append(time.monotonic())
        whole = save(self, state)
        held_up.append(time.monotonic() - begun[-1])
        if ranks == 1:
            until_whole.append(held_up[-1])
        return whole

    def timed_finish(self: Any) -> Any:
        running = self.is_running
        whole = finish(self)
        if running:
            until_whole.append(time.monotonic() - begun[-1])
        return whole

    CheckpointWriter.save, CheckpointWriter.finish = timed_save, timed_finish  # type: ignore[method-assign]
    run = run_of(options, way, str(folder / "run"))
    run.training.save_steps, run.training.save_total_limit = 2, None
    with gloo(rank, ranks, folder):
        result = train(run, make_base(options))
    sizes = [(p.numel(), p.requires_grad) for p in result.model.parameters()]
    if rank == 0:
        newest = sorted((folder / "run").glob("checkpoint-*"))[-1]
        record = {
            "held_up": held_up,
            "until_whole": until_whole,
            "bytes": folder_bytes(newest),
            "trained": sum(n for n, on in sizes if on),
            "parameters": sum(n for n, _ in sizes),
        }
        (folder / "record.json").write_text(json.dumps(record))


def measure(options: argparse.Namespace, way: str, ranks: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        by_processes(partial(train_once, options, way, ranks), ranks, options.data, folder)
        result: dict[str, Any] = json.loads((folder / "record.json").read_text())
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shape(parser, layers=16)
    options = parser.parse_args()
    text = "| trained | processes | trained / all, M | MB | s held up | s until whole |\n"
    text += "|---|---:|---:|---:|---:|---:|\n"
    results: dict[str, Any] = {}
    for way, name in (("native", "expanded blocks"), ("full", "the whole model")):
        for ranks in (1, 2):
            found = results[f"{way}, {ranks}"] = measure(options, way, ranks)
            row = [name, str(ranks)]
            row += [f"{found['trained'] / 1e6:.1f} / {found['parameters'] / 1e6:.1f}"]
            row += [f"{found['bytes'] / 1e6:.1f}"]
            row += [shown(found["held_up"]), shown(found["until_whole"])]
            text += f"| {' | '.join(row)} |\n"
    print(text)
    write_record(options.output, "checkpoint-cost", text, results)


if __name__ == "__main__":
    main()
