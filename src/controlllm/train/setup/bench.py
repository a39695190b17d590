"""The workbench: everything a back end needs, made from a run config.

RunConfig --> model on its device --> rehearsal (the base writes) --> method (expand, ...)
          --> loader, loss, meter, alpha sampler, optimizer, schedule
"""

import logging
import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint import describe_model
from controlllm.common.attention.documents import check_packing
from controlllm.common.distributed import Ranks
from controlllm.common.errors import ConfigError
from controlllm.common.packages.bitsandbytes import BNB_KINDS, require_bitsandbytes
from controlllm.common.packages.torchao import require_torchao
from controlllm.data import Batch, SourceConfig, TrainLoader, eval_batches, read_examples
from controlllm.data.inspect.overlap import warn_of_overlaps
from controlllm.evaluate import Reference
from controlllm.expansion.hub.peft import require_peft
from controlllm.expansion.surgery.quantised import parameter_count
from controlllm.train.config.parallel_config import ZERO
from controlllm.train.config.run_config import RunConfig
from controlllm.train.config.support import check_quantised
from controlllm.train.observe.retention import ForgettingMeter
from controlllm.train.parallel import World, shard_model
from controlllm.train.parallel.deepspeed_config import (
    check_precision,
    deepspeed_config,
    engine_dtype,
    prepare_deepspeed,
    zero3_cutter,
)
from controlllm.train.parallel.device import find_device
from controlllm.train.parallel.loading import (
    fill_by_units,
    fill_from,
    is_without_weights,
    weights_to_shard,
)
from controlllm.train.parallel.sharding import sharding_units
from controlllm.train.parallel.storage import Storage
from controlllm.train.setup.activations import compile_blocks
from controlllm.train.setup.methods import METHODS, prepare_model
from controlllm.train.setup.model import Loaded, load_base, tune_model
from controlllm.train.setup.quantize import check_shared, quantize_base
from controlllm.train.setup.rehearsal import rehearsal_source
from controlllm.train.setup.sizing import count_steps, warn_of_short_data
from controlllm.train.step.alpha import AlphaSampler
from controlllm.train.step.head import check_head
from controlllm.train.step.liger import apply_liger_kernels, check_liger_kernels, require_liger
from controlllm.train.step.losses import StepLoss
from controlllm.train.step.low_bit import LOW_BIT
from controlllm.train.step.optim import make_optimizer, make_scheduler

__all__ = ["Bench", "make_bench", "seed_everything"]

log = logging.getLogger(__name__)


@dataclass
class Bench:
    """What a back end works with.

    Attributes:
        run: the resolved run config.
        model: what trains, on its device.
        tokenizer: its tokenizer.
        loader: training batches, on the CPU.
        loss: the loss of a step.
        meter: the forgetting meter.
        alphas: the alpha of each step.
        optimizer: AdamW over what trains.
        scheduler: its learning rate by step.
        total_steps: optimizer steps of the whole run.
        world: the processes of the run.
        storage: where the trained tensors and their moments lie.
        engine_settings: DeepSpeed's, under zero2 and zero3.
    """

    run: RunConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    loader: TrainLoader
    loss: StepLoss
    meter: ForgettingMeter
    alphas: AlphaSampler
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    total_steps: int
    world: World
    storage: Storage
    engine_settings: dict[str, Any]

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

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of every forward pass, training and evaluation alike."""
        # Sharded parts are gathered in bfloat16 already.
        if self.run.training.mixed_precision == "bf16" and not self.world.shares:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def check_model(self) -> None:
        """Try out on the model what the run relies on, once it computes as it will in training.

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


def make_bench(run: RunConfig, loaded: Loaded | None = None, world: World | None = None) -> Bench:
    """Build everything. Collective where there are several processes.

    Args:
        run: the run config.
        loaded: model and tokenizer to use instead of loading `run.model`; both are taken over.
        world: the processes of the run; by default this one alone.

    Raises:
        ControlLLMError: whatever is wrong with the config, the model or the data; also a model that
            does not keep packed documents apart.
    """
    training, world = run.training, world or World(Ranks(), run.parallel)
    _require_packages(run)
    if run.model.quantize_base is not None and world.shares:
        check_quantised({run.model.quantize_base}, run.parallel.strategy)
    engine_settings = _prepare_deepspeed(run, world) if run.parallel.strategy in ZERO else {}
    seed_everything(training.seed)
    files = weights_to_shard(run, world) if loaded is None else None
    if loaded is None:
        log.info("Loading %s", run.model.model_name_or_path)
    base, tokenizer = load_base(run, loaded, files)
    rehearsal = None
    if run.rehearsal.enabled:
        store = world.ranks.first(lambda: rehearsal_source(base, tokenizer, run))
        rehearsal = (store, run.rehearsal.share)
    batch_size = training.per_device_train_batch_size
    loader = TrainLoader(
        run.data,
        tokenizer,
        batch_size,
        training.seed,
        rehearsal,
        base,
        world.loader_ranks(run.data.cache_timeout),
    )
    world.ranks.first(lambda: warn_of_overlaps(run.data))
    log.info("Setting up the method %s", run.method)
    prepared = prepare_model(base, run, world.size)
    _tell(prepared.model, loader)
    if run.model.quantize_base is not None and run.model.quantize_base not in BNB_KINDS:
        quantize_base(prepared.model, run.model.quantize_base)
    check_shared(prepared.model, run.parallel if world.shares else None)
    model, reference = tune_model(prepared.model, training), prepared.reference
    if training.use_liger_kernel:
        for module in [model, *_copies(reference)]:
            apply_liger_kernels(module, training)
    _share(model, reference, files, run, world, engine_settings)
    seed_everything(training.seed + world.data_ranks.rank)
    total_steps = count_steps(run, loader)
    warn_of_short_data(run, loader, total_steps)
    optimizer = make_optimizer(model, training)
    kl_weight = run.rehearsal.weight if run.rehearsal.uses_kl else None
    bench = Bench(
        run=run,
        model=model,
        tokenizer=tokenizer,
        loader=loader,
        loss=StepLoss(
            model,
            reference,
            kl_weight,
            training.loss_chunk_size,
            run.kl if METHODS.get(run.method).asks_base else None,
            training.fuses_loss,
        ),
        meter=_make_meter((model, reference), tokenizer, run, world.data_ranks),
        alphas=AlphaSampler(model, training.alpha_sampling, training.seed),
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, training, total_steps),
        total_steps=total_steps,
        world=world,
        storage=Storage(model, optimizer, world.ranks),
        engine_settings=engine_settings,
    )
    if run.parallel.strategy not in ZERO:
        bench.check_model()
    return bench


def _prepare_deepspeed(run: RunConfig, world: World) -> dict[str, Any]:
    """Set DeepSpeed up; the settings of its engine, seen to before anything is loaded."""
    on_cpu = find_device(run.model.device).type == "cpu"
    prepare_deepspeed(on_cpu, world.local_rank)
    return deepspeed_config(run, run.training.micro_batches(world.data_size), on_cpu)


def _require_packages(run: RunConfig) -> None:
    """Refuse before anything is loaded what needs a package that is not there (ConfigError)."""
    if run.adapters:
        require_peft()
    if run.training.optimizer in LOW_BIT:
        require_torchao("torchao.optim", f"training.optimizer={run.training.optimizer}")
    if run.model.quantize_base is not None:
        setting = f"model.quantize_base={run.model.quantize_base}"
        if run.model.quantize_base in BNB_KINDS:
            require_bitsandbytes(setting)
        else:
            require_torchao("torchao.quantization", setting)
    for name in run.logging.integrations:
        _require_integration(name)
    if run.training.use_liger_kernel:
        require_liger(find_device(run.model.device))


def _require_integration(name: str) -> None:
    from transformers.integrations import integration_utils

    short = name.removesuffix("_ml")
    is_available = getattr(integration_utils, f"is_{short}_available", None)
    if is_available is not None and not is_available():
        raise ConfigError(
            f"logging.report_to={name} needs a package that is not installed: pip install {name}."
        )


def _copies(reference: Reference | None) -> list[torch.nn.Module]:
    """The frozen copy of the base, where there is one."""
    return [] if reference is None or reference.copy is None else [reference.copy]


def _share(
    model: PreTrainedModel,
    reference: Reference | None,
    files: Path | None,
    run: RunConfig,
    world: World,
    engine_settings: dict[str, Any],
) -> None:
    """Shard the model, and a frozen copy of its base; read their weights where they have none."""
    precision = run.training.mixed_precision
    if run.parallel.strategy in ZERO:
        check_precision(model, precision)
    if run.training.torch_compile:
        compile_blocks(list(sharding_units(model)))
    for module in [model, *_copies(reference)]:
        shard_model(module, world, precision)
        if files is None or not is_without_weights(module):
            continue
        device = find_device(run.model.device)
        if world.mesh is not None:
            fill_from(files, module, world, device)
        elif module is model:
            cut, dtype = zero3_cutter(engine_settings), engine_dtype(precision)
            fill_by_units(files, module, world, device, dtype, cut)
        else:  # No engine will have it, so it stays whole.
            fill_by_units(files, module, world, device)
    describe_model(model)  # Notes which base it is, before anything trains. Collective.


def _tell(model: PreTrainedModel, loader: TrainLoader) -> None:
    """Log what trains, and on what."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info("Training %s of %s parameters", f"{trained:,}", f"{parameter_count(model):,}")
    for line in loader.describe().splitlines():
        log.info("Training source %s", line)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _make_meter(
    models: tuple[PreTrainedModel, Reference | None],
    tokenizer: PreTrainedTokenizerBase,
    run: RunConfig,
    ranks: Ranks,
) -> ForgettingMeter:
    def batches(sources: list[SourceConfig]) -> dict[str, list[Batch]]:
        return {str(source.name): _eval_set(source, tokenizer, run) for source in sources}

    return ForgettingMeter(*models, batches(run.data.learn), batches(run.data.retain), ranks)


def _eval_set(
    source: SourceConfig, tokenizer: PreTrainedTokenizerBase, run: RunConfig
) -> list[Batch]:
    training = run.training
    examples, stats = read_examples(source, tokenizer, run.data)
    tokens = sum(map(len, examples))
    read = f"{len(examples):,} examples of {tokens:,} tokens are measured"
    log.info("Evaluation set %s: %s; %s", source.name, read, stats.describe())
    return eval_batches(examples, tokenizer, run.data, training.per_device_eval_batch_size)
