"""Trained tensors and optimizer state as they lie in memory: read to be saved, filled to resume."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from controlllm.checkpoint import fill_tensors, trained_tensors
from controlllm.checkpoint.training.optimizer import (
    make_optimizer_state,
    optimizer_state,
    restore_optimizer,
)
from controlllm.common.distributed import Ranks

__all__ = ["Storage"]


class Storage:
    """Trained tensors and their moments as a model and its optimizer hold them, sharded or not."""

    def __init__(
        self, model: PreTrainedModel, optimizer: torch.optim.Optimizer, ranks: Ranks
    ) -> None:
        self.model, self.optimizer, self.ranks = model, optimizer, ranks

    def read(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Trained tensors by name, the optimizer's by name, and the rest of its state. Collective.

        Tensors are the model's own where they can be, not copies.
        """
        tensors, rest = optimizer_state(self.model, self.optimizer)
        return trained_tensors(self.model), tensors, rest

    def fill(self, checkpoint: Path, rest: dict[str, Any]) -> None:
        """Fill model and optimizer from a verified checkpoint's folder. Collective.

        `rest` is what `read` gave beside the tensors when it was saved.

        Raises:
            CheckpointError: names, shapes or groups of parameters are not those of the checkpoint.
        """
        make_optimizer_state(self.optimizer)
        trained, tensors, _ = self.read()
        filled = fill_tensors(checkpoint, {**trained, **tensors}, self.ranks)
        restore_optimizer(self.model, self.optimizer, filled, rest)
