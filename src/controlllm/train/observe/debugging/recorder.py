"""Torch's flight recorder: the last collectives of each process, written where one times out."""

import os
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from controlllm.train.config.debug_config import DebugConfig

__all__ = ["FOLDER", "prepare_recorder"]

FOLDER = "flight_recorder"


def prepare_recorder(config: DebugConfig, output_dir: str) -> None:
    """Set the recorder's variables, which torch reads as it makes a group of processes.

    Variables that are set already are left as they are.

    Args:
        config: whether to.
        output_dir: the run folder.
    """
    if not config.flight_recorder:
        return
    if not torch.cuda.is_available():
        warnings.warn(
            "debug.flight_recorder=true records collectives of NCCL only, and torch sees no GPU "
            "here: nothing will be recorded. debug.watchdog_seconds works everywhere.",
            stacklevel=3,
        )
        return
    if dist.is_available() and dist.is_initialized():
        warnings.warn(
            "debug.flight_recorder=true comes too late: the group of processes was made before "
            "the run began. Set TORCH_FR_BUFFER_SIZE before that.",
            stacklevel=3,
        )
        return
    folder = Path(output_dir).absolute() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in recorder_variables(folder).items():
        os.environ.setdefault(name, value)


def recorder_variables(folder: Path) -> dict[str, str]:
    """The variables by name. Source: torch/csrc/distributed/c10d/FlightRecorder.hpp."""
    return {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": str(folder / "rank-"),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
    }
