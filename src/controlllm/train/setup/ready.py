"""Stage 4: loss, optimizer, schedule and meter of the model: all that a loop needs."""

import logging
from pathlib import Path

from transformers import PreTrainedModel

from controlllm.data import TrainLoader
from controlllm.expansion import parameter_count
from controlllm.train.config.methods import METHODS
from controlllm.train.config.run_config import RunConfig
from controlllm.train.observe.retention import ForgettingMeter
from controlllm.train.parallel import World
from controlllm.train.parallel.storage import Storage
from controlllm.train.setup.base import make_base, seed_everything
from controlllm.train.setup.generation import make_generation_meter
from controlllm.train.setup.held_out import read_held_out
from controlllm.train.setup.methods import prepare_model
from controlllm.train.setup.model import Loaded
from controlllm.train.setup.sharding import shard
from controlllm.train.setup.sizing import count_steps, warn_of_short_data
from controlllm.train.setup.stages import Base, Prepared, Ready, Sharded, fields_of
from controlllm.train.setup.ways.contract import BASE
from controlllm.train.step.alpha import AlphaSampler
from controlllm.train.step.loss_types import LOSS_TYPES
from controlllm.train.step.losses import StepLoss
from controlllm.train.step.optim import make_optimizer, make_scheduler

__all__ = ["set_up"]

log = logging.getLogger(__name__)


def set_up(
    run: RunConfig,
    loaded: Loaded | None = None,
    world: World | None = None,
    checkpoint: Path | None = None,
) -> Ready:
    """All stages in order. Collective where there are several processes.

    Args:
        run: the run config.
        loaded: model and tokenizer to use instead of loading `run.model`; both are taken over.
        world: the processes of the run; by default this one alone.
        checkpoint: that the run resumes from, which its loop is to read.

    Raises:
        ControlLLMError: whatever is wrong with the config, the model or the data; also a model that
            does not keep packed documents apart.
    """
    return make_ready(shard(prepare(make_base(run, loaded, world, checkpoint))))


def prepare(base: Base) -> Prepared:
    """Stage 2: the base as the method trains it, and what computes the untrained base."""
    log.info("Setting up the method %s", base.run.method)
    model, reference = prepare_model(base.model, base.run, base.world.size)
    _tell(model, base.loader)
    references = {stage.name: stage.reference(model) for stage in base.stages}
    if base.parents:
        model.config.parents = list(base.parents)
    elif reference is not None:
        references = {BASE: reference}
    return Prepared(**{**fields_of(base), "model": model}, references=references)


def make_ready(sharded: Sharded) -> Ready:
    """Stage 4: make loss, optimizer, schedule and meter for a model in its place.

    Raises:
        ModelError: the model does not compute as the run relies on.
    """
    run, model, world, training = sharded.run, sharded.model, sharded.world, sharded.run.training
    tokenizer = sharded.tokenizer
    seed_everything(training.seed + world.data_ranks.rank)
    total_steps = count_steps(run, lambda: sharded.loader)
    warn_of_short_data(run, sharded.loader, total_steps)
    optimizer = make_optimizer(model, training)
    sets = read_held_out(run, sharded.stages, sharded.own_text, tokenizer)
    ready = Ready(
        **fields_of(sharded),
        loss=StepLoss(
            model,
            sharded.before,
            run.rehearsal.weight if run.rehearsal.uses_kl else None,
            training.loss_chunk_size,
            run.kl if METHODS.get(run.method).asks_base else None,
            training.fuses_loss,
            LOSS_TYPES.get(training.loss_type),
            together=world.size > 1 and run.parallel.way.cuts_weights,
        ),
        meter=ForgettingMeter(
            model,
            sharded.references,
            sets.learn,
            sets.retain,
            world.data_ranks,
            sets.owners,
        ),
        texts=make_generation_meter(model, tokenizer, run, world),
        alphas=AlphaSampler(model, training.alpha_sampling, training.seed),
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, training, total_steps),
        total_steps=total_steps,
        storage=Storage(model, optimizer, world.ranks),
    )
    if not run.parallel.way.by_deepspeed:  # Under ZeRO it computes once it is an engine's.
        ready.check_model()
    return ready


def _tell(model: PreTrainedModel, loader: TrainLoader) -> None:
    """Log what trains, and on what."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info("Training %s of %s parameters", f"{trained:,}", f"{parameter_count(model):,}")
    for line in loader.describe().splitlines():
        log.info("Training source %s", line)
