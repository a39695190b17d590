"""Runs that several real processes train together, by gloo on the CPU."""

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import soak
from tests.evaluate.conftest import documents  # noqa: F401
from tests.train.conftest import learned_old, loaded, run_config, texts  # noqa: F401

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


@pytest.fixture(scope="session")
def pretrained_pico(pico_llama: Any, pico_tokenizer: Any) -> Any:
    """Of three layers, two of which are expanded: each costs every process of every run."""
    return learned_old(
        pico_llama(seed=1, initializer_range=0.1, num_hidden_layers=3), pico_tokenizer
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and texts."""
    folder = tmp_path_factory.mktemp("place")
    soak.prepare(folder)
    return folder
