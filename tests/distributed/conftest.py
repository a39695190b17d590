"""Runs that several real processes train together, by gloo on the CPU."""

from pathlib import Path

import pytest

# Forked processes find these imported; each would need seconds for them.
import torch.distributed.checkpoint
import torch.distributed.checkpoint.state_dict_saver
import torch.distributed.fsdp
import torch.distributed.tensor.parallel
from benchmarks import soak
from tests.train.conftest import loaded, pretrained_pico, run_config, texts  # noqa: F401

import controlllm.train.loops.native
import controlllm.train.parallel.loading
import controlllm.train.record.recorder
import controlllm.train.run  # noqa: F401
from controlllm.train.observe.peaks import measured_peak


@pytest.fixture(scope="session", autouse=True)
def peak() -> None:
    """Measured once: forked processes would measure it one by one."""
    measured_peak(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and texts."""
    folder = tmp_path_factory.mktemp("place")
    soak.prepare(folder)
    return folder
