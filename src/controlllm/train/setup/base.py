"""Stage 1: the base model on its device, and the data that it will learn from."""

import logging
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from controlllm.checkpoint.training.state import load_values
from controlllm.common.distributed import Ranks
from controlllm.common.errors import ConfigError
from controlllm.data import TrainLoader, check_first_rows, warn_of_overlaps
from controlllm.expansion import require_peft
from controlllm.train.config.compatibility import check_quantised
from controlllm.train.config.optimizers import OPTIMIZERS
from controlllm.train.config.run_config import RunConfig
from controlllm.train.config.ways import WAYS
from controlllm.train.parallel import World
from controlllm.train.parallel.deepspeed_config import deepspeed_config, prepare_deepspeed
from controlllm.train.parallel.device import find_device
from controlllm.train.parallel.loading import weights_to_shard
from controlllm.train.setup.benchmarks import load_benchmarks
from controlllm.train.setup.generation import check_generation
from controlllm.train.setup.model import Loaded, load_base, place_stage
from controlllm.train.setup.own_text import stages_own_text
from controlllm.train.setup.rehearsal import rehearsal_source
from controlllm.train.setup.sizing import count_steps
from controlllm.train.setup.stages import Base
from controlllm.train.setup.ways.contract import GOINGS, Earlier, Stage
from controlllm.train.setup.ways.earlier import find_earlier
from controlllm.train.step.liger import require_liger

__all__ = ["make_base", "seed_everything"]

log = logging.getLogger(__name__)


def make_base(
    run: RunConfig,
    loaded: Loaded | None = None,
    world: World | None = None,
    checkpoint: Path | None = None,
) -> Base:
    """Load the base, let it write what is rehearsed and what is measured, and open the data.

    Args:
        run: the run config.
        loaded: model and tokenizer to use instead of loading `run.model`; both are taken over.
        world: the processes of the run; by default this one alone.
        checkpoint: that the run resumes from, with as much rehearsed as it began with.

    Raises:
        ConfigError, DataError, ModelError, CheckpointError: for what the config names.
    """
    world = world or World(Ranks(), run.parallel)
    _require_packages(run)
    if run.model.quantize_base is not None and world.shares:
        check_quantised({run.model.quantize_base}, run.parallel.strategy)
    engine_settings: dict[str, Any] = {}
    if run.parallel.way.by_deepspeed:  # Its settings are seen to before anything is loaded.
        on_cpu = find_device(run.model.device).type == "cpu"
        prepare_deepspeed(on_cpu, world.local_rank)
        micro_batches = run.training.micro_batches(world.data_size)
        engine_settings = deepspeed_config(run, micro_batches, on_cpu)
    seed_everything(run.training.seed)
    world.ranks.first(lambda: check_first_rows(run.data))
    world.ranks.first(lambda: check_generation(run))
    benchmarks = load_benchmarks(run, world)
    files = weights_to_shard(run, world) if loaded is None else None
    if loaded is None:
        log.info("Loading %s", run.model.model_name_or_path)
    earlier = None
    if run.continue_from is not None and not WAYS.get(run.continue_by).all_data:
        earlier = world.ranks.first(lambda: find_earlier(run))
    model, tokenizer = load_base(run, loaded, files, earlier)
    stages, parents = _earlier_stages(model, run, earlier, world)
    data = partial(
        TrainLoader,
        run.data,
        tokenizer,
        run.training.per_device_train_batch_size,
        run.training.seed,
        model=model,
        ranks=world.loader_ranks(run.data.cache_timeout),
    )
    writers, rehearsal = world.writer_ranks(), None
    if run.rehearsal.enabled:
        begun = None if checkpoint is None else load_values(checkpoint).extra.get("rehearsed")
        asked = run.rehearsal.max_epochs is not None and begun is None
        steps = count_steps(run, data) if asked else None
        store = writers.first(
            lambda: rehearsal_source(model, tokenizer, run, stages, steps, world.data_size, begun)
        )
        rehearsal = (store, run.rehearsal.share)
    own_text = writers.first(lambda: stages_own_text(model, tokenizer, run, stages))
    loader = data(rehearsal=rehearsal)
    world.ranks.first(lambda: warn_of_overlaps(run.data))
    return Base(
        run,
        world,
        model,
        tokenizer,
        loader,
        files,
        engine_settings,
        benchmarks,
        own_text,
        stages,
        parents,
    )


def _earlier_stages(
    model: PreTrainedModel, run: RunConfig, earlier: Earlier | None, world: World
) -> tuple[tuple[Stage, ...], tuple[dict[str, Any], ...]]:
    """The stages that a run goes on from, each in its place, and what is recorded of them."""
    if earlier is None:
        return (), ()
    shares = world.size == 1 and run.expansion.freeze is None  # Else the base is about to train.
    stages = GOINGS.get(run.continue_by).stages(model, earlier, run, shares)
    last = {**earlier.parents[-1], "dtype": str(model.dtype).removeprefix("torch.")}
    return tuple(place_stage(one, run) for one in stages), (*earlier.parents[:-1], last)


def _require_packages(run: RunConfig) -> None:
    """Check that every package is there that the run needs, before anything is loaded."""
    if run.adapters:
        require_peft()
    OPTIMIZERS.get(run.training.optim).require(f"training.optim={run.training.optim}")
    if run.quantizer is not None:
        run.quantizer.require(f"model.quantize_base={run.model.quantize_base}")
    for name in run.logging.integrations:
        from transformers.integrations import integration_utils

        known = f"is_{name.removesuffix('_ml')}_available"
        if not getattr(integration_utils, known, lambda: True)():
            raise ConfigError(
                f"logging.report_to={name} needs a package that is not installed: pip install "
                f"{name}."
            )
    if run.training.use_liger_kernel:
        require_liger(find_device(run.model.device))


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
