"""What does a training step of a useful size cost on this device, beside what `plan` says?

Our loop as it is (`controlllm.train.train`), bf16 autocast, packed rows of one document each. The
run ends by an error of our own before its checkpoint is written: that of a whole model would take
longer than all steps. Memory that would not fit by the plan is not tried.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import train_step
from benchmarks.gpu.device import GIB, Device
from benchmarks.gpu.shapes import SIZES, Size, make_base, make_tokenizer, write_text
from torch import nn

from controlllm.train import Callback, RunConfig, train
from controlllm.train.config.config_io import merge
from controlllm.train.observe import metrics as names
from controlllm.train.parallel.mesh import MeshPlan
from controlllm.train.plan.estimate import Estimate, estimate

__all__ = ["WAYS", "measure", "run"]

STEPS, WARM_UP = 12, 4
ROOM = 0.95
"""Share of a GPU's memory that a plan may take to be tried."""

WAYS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "full": (None, {}),
    "native": (None, {}),
    "lora": ("peft", {"method": "lora", "peft": {"r": 16}}),
    "stack": (None, {}),
    "native, loss in chunks": (None, {"training": {"loss_chunk_size": 2048}}),
    "native, checkpointing": (None, {}),
    "native, padded": (None, {"data": {"packing": False}}),
    "native, Liger": ("liger_kernel", {"training": {"use_liger_kernel": True}}),
    "native, padded, compiled": (
        None,
        {"data": {"packing": False}, "training": {"torch_compile": True}},
    ),
}
"""Name -> the package it needs, and what it changes of `train_step.settings` of that name."""


class Enough(Exception):
    """The last step is done; what the run recorded."""


class StopAt(Callback):
    """Ends a run by `Enough`, without a checkpoint."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def after_step(self, state: Any) -> None:
        if state.step == self.steps:
            raise Enough([row for row in state.history if names.LOSS in row])


def run(options: argparse.Namespace, emit: Callable[[dict[str, Any]], None]) -> None:
    """Every way in turn; what one lacks, or dies of, is its row."""
    device, size = Device(options.device), SIZES[options.size]
    for way, (package, _) in WAYS.items():
        row = {"way": way, "size": options.size}
        if package is not None and find_spec(package) is None:
            emit({**row, "note": f"left out: {package} is not installed"})
        elif options.device == "cpu" and package == "liger_kernel":
            emit({**row, "note": "left out: Triton compiles for GPUs only"})
        else:
            emit({**row, **measured(way, size, device)})


def measured(way: str, size: Size, device: Device) -> dict[str, Any]:
    """The row of a way, or why there is none; memory is given back either way."""
    try:
        return measure(way, size, device)
    except Exception as error:  # Whatever it is, the other ways are to be measured.
        return {"note": f"failed: {type(error).__name__}: {error}"}


def measure(way: str, size: Size, device: Device) -> dict[str, Any]:
    """Seconds, rates and memory of a step of one way, beside the plan's."""
    device.clear()
    with tempfile.TemporaryDirectory() as folder:
        setup = run_of(way, size, device, Path(folder))
        plan = planned(setup, size)
        total = device.total_gib()
        planned_gib = plan.memory.total / GIB
        if total is not None and planned_gib > ROOM * total:
            return {"plan_gib": planned_gib, "note": f"left out: the GPU has {total:.0f} GiB"}
        rows = take_steps(setup, size, device)
    found = {name: statistics.median(row[key] for row in rows) for name, key in READ.items()}
    return {
        "parameters": plan.parameters,
        "trained": plan.trained,
        **found,
        "planned_tflop": plan.flops.model / 1e12,
        "peak_gib": device.peak_gib(),
        "plan_gib": planned_gib,
    }


READ = {
    "step_seconds": names.STEP_SECONDS,
    "tokens_per_second": names.TOKENS_PER_SECOND,
    "mfu": names.MFU,
    "hfu": names.HFU,
    "data_seconds": names.PHASE_SECONDS.format("data"),
    "optimizer_seconds": names.PHASE_SECONDS.format("optimizer"),
}
"""What is read from the run's own metrics: medians over the steps but the first few."""


def run_of(way: str, size: Size, device: Device, folder: Path) -> RunConfig:
    """The run of a way."""
    text = write_text(folder / "text.jsonl", 2 * size.rows, 2 * size.length)
    values = {
        "model": {"device": device.torch.type},
        "data": {
            "train": [{"path": str(text)}],
            "max_length": size.length,
            "cache_dir": str(folder / "cache"),
        },
        "training": {
            "output_dir": str(folder / "run"),
            "bf16": True,
            "max_steps": STEPS,
            "per_device_train_batch_size": size.rows,
        },
        "logging": {"logging_steps": 1, "report_to": []},
    }
    if WAYS[way][1].get("method") is None:
        values = merge(values, train_step.settings(way, size.layers))
    return RunConfig.from_dict(merge(values, WAYS[way][1]))


def planned(setup: RunConfig, size: Size) -> Estimate:
    """What `controlllm plan` says of the run."""
    expansion = setup.expansion if setup.method in ("control", "stack") else None
    return estimate(setup, size.config(), expansion, MeshPlan(1, 1))


def take_steps(setup: RunConfig, size: Size, device: Device) -> list[dict[str, Any]]:
    """The run's records of its steps, the first few left out."""
    base = make_base(size.config(), device.torch)
    try:
        with nullcontext() if device.is_gpu else patch.object(nn.Module, "compile", traced):
            train(setup, (base, make_tokenizer()), [StopAt(STEPS)])
    except Enough as enough:
        rows: list[dict[str, Any]] = enough.args[0]
    finally:
        torch.compiler.reset()
    return rows[WARM_UP:]


def traced(module: nn.Module) -> None:
    """As `torch.nn.Module.compile`, by dynamo alone: inductor takes minutes on a CPU."""
    module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")
