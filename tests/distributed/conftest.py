"""Runs that several real processes train together, by gloo on the CPU."""

import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from benchmarks import soak
from tests.train.conftest import loaded, pretrained_pico, run_config, texts  # noqa: F401

from controlllm.train.observe.peaks import measured_peak

NEEDED = (
    "torch.distributed.checkpoint.state_dict_saver",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "deepspeed",
    "controlllm.train.loops.native",
    "controlllm.train.loops.hf.trainer",
    "controlllm.train.loops.hf.zero",
    "controlllm.train.parallel.loading",
    "controlllm.train.run",
)


@pytest.fixture(scope="session", autouse=True)
def prepared() -> None:
    """What every forked process would import, or measure, for itself: seconds each time."""
    for name in NEEDED:
        if find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    measured_peak(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and texts."""
    folder = tmp_path_factory.mktemp("place")
    soak.prepare(folder)
    return folder
