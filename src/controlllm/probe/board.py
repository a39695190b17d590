"""Findings in TensorBoard: scalars by layer, and its projector."""

import importlib
from collections.abc import Mapping
from pathlib import Path

from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.text.readable import readable
from controlllm.probe.contract import Finding

__all__ = ["write_board"]


def write_board(folder: str | Path, findings: Mapping[str, Finding | str]) -> int:
    """Write what was found as TensorBoard reads it: the step of a scalar is its layer.

    Returns:
        How many sets of vectors the projector has.

    Raises:
        ConfigError: TensorBoard is not installed.
        CheckpointError: the folder cannot be written.
    """
    try:
        module = importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise ConfigError("--tensorboard needs TensorBoard: `pip install tensorboard`.") from error
    count = 0
    try:
        with module.SummaryWriter(str(folder)) as writer:
            for one in findings.values():
                if isinstance(one, str):
                    continue
                for name, curve in one.scalars.items():
                    for layer, value in sorted(curve.items()):
                        if layer >= 0:
                            writer.add_scalar(f"probe/{name}", value, layer)
                for each in one.embeddings:
                    rows = [[_cell(value) for value in row] for row in each.rows]
                    writer.add_embedding(
                        each.vectors_ND, rows, tag=each.name, metadata_header=list(each.header)
                    )
                    count += 1
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder}: {error.strerror}; choose another."
        ) from error
    return count


def _cell(value: str) -> str:
    """A text that stays in its cell of the projector's table."""
    return readable(value).replace("\t", " ").replace("\n", " ")
