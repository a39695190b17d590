"""How a run becomes ready: four stages, each a frozen result that adds to the one before.

```
RunConfig --make_base--> Base        the base on its device, and the data
          --prepare----> Prepared    expanded, with adapters, ...; what computes the base
          --shard------> Sharded     in parts on its processes, with all weights
          --make_ready-> Ready       loss, optimizer, schedule, meter: all that a loop needs
```
Under ZeRO a loop adds a stage of its own: DeepSpeed's engine takes model and optimizer.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.attention.documents import check_packing
from controlllm.data import Batch, Example, TrainLoader
from controlllm.evaluate import LoadedSuite, Reference
from controlllm.train.config.run_config import RunConfig
from controlllm.train.observe.generation import GenerationMeter
from controlllm.train.observe.retention import ForgettingMeter
from controlllm.train.parallel import World
from controlllm.train.parallel.storage import Storage
from controlllm.train.setup.ways.contract import BASE, Stage
from controlllm.train.step.alpha import AlphaSampler
from controlllm.train.step.head import check_head
from controlllm.train.step.liger import check_liger_kernels
from controlllm.train.step.losses import StepLoss

__all__ = ["Base", "Prepared", "Ready", "Sharded", "fields_of"]

log = logging.getLogger(__name__)


def fields_of(stage: "Base") -> dict[str, Any]:
    """The fields of a stage as keyword arguments of the next one."""
    return {field.name: getattr(stage, field.name) for field in fields(stage)}


@dataclass(frozen=True)
class Base:
    """The base model on its device, and the data that it will learn from.

    Attributes:
        run: the resolved run config.
        world: the processes of the run.
        model: the base; in later stages what it became.
        tokenizer: its tokenizer.
        loader: training batches, on the CPU.
        files: where the weights lie that a model on the meta device has not read yet, or None.
        engine_settings: DeepSpeed's, under zero2 and zero3.
        benchmarks: the suite that is asked while it trains, or None.
        own_text: what the base wrote to be measured, by the name of the set.
        stages: the base and the runs that it goes on from, as they were; none where it goes on
            from no run.
        parents: what is recorded of those runs.
    """

    run: RunConfig
    world: World
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    loader: TrainLoader
    files: Path | None
    engine_settings: dict[str, Any]
    benchmarks: LoadedSuite | None
    own_text: Mapping[str, Sequence[Example]]
    stages: tuple[Stage, ...]
    parents: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Prepared(Base):
    """What the method made of the base.

    Attributes:
        references: by the names of the stages, the oldest first, who computes the base and each run
            that this one goes on from; none where nothing asks them.
    """

    references: Mapping[str, Reference]

    @property
    def reference(self) -> Reference | None:
        """The base, for what asks it; None where nothing does."""
        return self.references.get(BASE)

    @property
    def before(self) -> Reference | None:
        """What the run is held to: the stage right before it; None where nothing asks it."""
        return next(reversed([*self.references.values()]), None)


@dataclass(frozen=True)
class Sharded(Prepared):
    """The model in its place on each process, with all of its weights."""


@dataclass(frozen=True)
class Ready(Sharded):
    """All that a loop needs to train.

    Attributes:
        loss: the loss of a step.
        meter: the forgetting meter.
        texts: what lets base and model answer questions.
        alphas: the alpha of each step.
        optimizer: of what trains.
        scheduler: its learning rate by step.
        total_steps: optimizer steps of the whole run.
        storage: where the trained tensors and their moments lie.
    """

    loss: StepLoss
    meter: ForgettingMeter
    texts: GenerationMeter
    alphas: AlphaSampler
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    total_steps: int
    storage: Storage

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an optimizer step on this process."""
        return self.run.training.micro_batches(self.world.data_size)

    @property
    def rows_of_a_step(self) -> int:
        """Rows of an optimizer step, over all processes."""
        rows = self.run.training.per_device_train_batch_size
        return rows * self.micro_batches * self.world.data_size

    @property
    def rehearsed(self) -> int | None:
        """Sequences that the base and earlier stages wrote to be rehearsed; None where none is."""
        return len(self.loader.feeds[-1].chunks) if self.run.rehearsal.enabled else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of every forward pass, training and evaluation alike."""
        dtype = self.run.training.autocast_dtype
        if dtype is None or self.world.shares:  # Sharded parts are gathered in it already.
            return nullcontext()
        return torch.autocast(self.device.type, dtype)

    def check_model(self) -> None:
        """Check by forward passes what the run relies on, in the precision of training.

        Raises:
            ModelError: packed documents, the loss in parts, or Liger's kernels come out wrong.
        """
        with self.autocast():
            if self.run.data.packing:
                log.info("Trying out that packed documents stay apart")
                check_packing(self.model)
            if self.loss.in_parts:
                check_head(self.model)
            if self.run.training.use_liger_kernel:
                check_liger_kernels(self.model, self.run.training.liger_kernels)
        self.world.reshard(self.model)

    def next_batches(self) -> list[Batch]:
        """The micro-batches of one optimizer step; none once the data has come to its end."""
        return list(islice(self.loader, self.micro_batches))

    def to_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch on the model's device."""
        return {
            key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
