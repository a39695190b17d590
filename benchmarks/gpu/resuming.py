"""Is a run that was stopped and goes on the run that never stopped, bit for bit, on this device?

Three runs under torch's deterministic algorithms: two straight ones, which say whether this device
repeats itself at all, and one that dies between two checkpoints and goes on. What is compared: all
trained tensors, the optimizer's moments, and the losses.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import SIZES, Size, make_base, make_tokenizer, write_text

from controlllm.checkpoint import load_checkpoint, newest_checkpoint
from controlllm.train import Callback, RunConfig, train
from controlllm.train.observe import metrics as names

__all__ = ["differences", "run"]

STEPS, SAVED_AT, DIES_AT = 8, 3, 5
SMALL = Size(512, 1408, 8, 8, 4, 32_000, rows=4, length=512)


class Died(Exception):
    """The process would be gone here."""


class Dies(Callback):
    """Ends a run by an error, after so many steps."""

    def after_step(self, state: Any) -> None:
        if state.step == DIES_AT:
            raise Died


def run(options: argparse.Namespace, emit: Callable[[dict[str, Any]], None]) -> None:
    """One row for what should be equal: a straight run again, and the one that goes on."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # Else products do not repeat on a GPU.
    torch.use_deterministic_algorithms(True, warn_only=True)
    device = Device(options.device)
    size = SMALL if device.is_gpu else replace(SIZES["dry"], rows=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = write_text(folder / "text.jsonl", 2 * size.rows, 2 * size.length)

        def trained(name: str, *callbacks: Callback) -> None:
            run = run_of(text, folder / name, size, device)
            train(run, (make_base(size.config(), device.torch), make_tokenizer()), callbacks)

        trained("straight")
        trained("again")
        emit({"run": "straight, again"} | differences(folder / "straight", folder / "again"))
        try:
            trained("resumed", Dies())
        except Died:
            trained("resumed")
        emit({"run": f"died after step {DIES_AT}, from the checkpoint of step {SAVED_AT}"}
             | differences(folder / "straight", folder / "resumed"))  # fmt: skip


def run_of(text: Path, folder: Path, size: Size, device: Device) -> RunConfig:
    """A short run that draws an alpha at each step."""
    return RunConfig.from_dict(
        {
            "model": {"device": device.torch.type},
            "expansion": {"num_blocks": 2},
            "data": {
                "train": [{"path": str(text)}],
                "max_length": size.length,
                "cache_dir": str(text.parent / "cache"),
            },
            "training": {
                "output_dir": str(folder),
                "bf16": True,
                "max_steps": STEPS,
                "save_steps": SAVED_AT,
                "learning_rate": 1e-3,
                "alpha_sampling": [0.2, 0.8],
                "per_device_train_batch_size": size.rows,
            },
            "logging": {"logging_steps": 1, "report_to": []},
        }
    )


def differences(folder: Path, other: Path) -> dict[str, Any]:
    """How many tensors of two runs' last checkpoints are not equal, and the largest difference."""
    found = []
    for place in (folder, other):
        newest = newest_checkpoint(place)
        assert newest is not None
        found.append(load_checkpoint(newest))
    first, second = ({**one.tensors, **one.optimizer_tensors} for one in found)
    assert first.keys() == second.keys()
    apart = [
        (tensor.float() - second[name].float()).abs().max().item()
        for name, tensor in first.items()
        if not torch.equal(tensor, second[name])
    ]
    losses = [[row[names.LOSS] for row in one.history if names.LOSS in row] for one in found]
    return {
        "steps": found[0].step,
        "tensors": len(first),
        "different": len(apart),
        "largest_difference": max(apart, default=0.0),
        "losses_equal": losses[0] == losses[1],
    }
