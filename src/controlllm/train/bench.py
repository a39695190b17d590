"""The workbench: everything a back end needs, made from a run config.

RunConfig --> model on its device --> rehearsal (the base writes) --> method (expand, ...)
          --> loader, loss, meter, alpha sampler, optimizer, schedule
"""

import logging
import math
import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.loading import LoadOptions, load_model
from controlllm.common.attention import packed_attention_for, register_packed_attention
from controlllm.common.errors import ConfigError
from controlllm.data import (
    Batch,
    SourceConfig,
    TrainLoader,
    eval_batches,
    resolve_chat_template,
    tokenize_source,
)
from controlllm.evaluate import Reference
from controlllm.train.alpha import AlphaSampler
from controlllm.train.config import RunConfig
from controlllm.train.losses import StepLoss
from controlllm.train.methods import prepare_model
from controlllm.train.optim import make_optimizer, make_scheduler
from controlllm.train.rehearsal import rehearsal_source
from controlllm.train.retention import ForgettingMeter
from controlllm.train.training_config import TrainingConfig

__all__ = ["Bench", "make_bench", "seed_everything"]

log = logging.getLogger(__name__)

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass
class Bench:
    """What a back end works with.

    Attributes:
        run: the resolved run config.
        model: what trains, on its device.
        tokenizer: its tokenizer.
        loader: endless training batches, on the CPU.
        loss: the loss of a step.
        meter: the forgetting meter.
        alphas: the alpha of each step.
        optimizer: AdamW over what trains.
        scheduler: its learning rate by step.
        total_steps: optimizer steps of the whole run.
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

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of every forward pass, training and evaluation alike."""
        if self.run.training.mixed_precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def to_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch on the model's device."""
        return {
            key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }


def make_bench(run: RunConfig, loaded: Loaded | None = None) -> Bench:
    """Build everything.

    Args:
        run: the run config.
        loaded: model and tokenizer to use instead of loading `run.model`; both are taken over.

    Raises:
        ControlLLMError: whatever is wrong with the config, the model or the data.
    """
    seed_everything(run.training.seed)
    base, tokenizer = loaded if loaded is not None else _load(run)
    base.to(_device(run.model.device))  # type: ignore[arg-type]
    # Whoever talks to the trained model must use the template it was trained with.
    tokenizer.chat_template = resolve_chat_template(run.data.chat_template, tokenizer)
    if not run.data.train:
        raise ConfigError("data.train names no source; give at least one to learn from.")
    rehearsal = None
    if run.rehearsal.enabled:
        rehearsal = (rehearsal_source(base, tokenizer, run), run.rehearsal.share)
    if run.data.packing:
        _pack_attention(base)
    prepared = prepare_model(base, run)
    training = run.training
    model = _tune_model(prepared.model, training)
    loader = TrainLoader(
        run.data, tokenizer, training.per_device_train_batch_size, training.seed, rehearsal
    )
    total_steps = _total_steps(run, loader)
    optimizer = make_optimizer(model, training)
    use_kl = run.rehearsal.enabled and run.rehearsal.loss == "kl"
    return Bench(
        run=run,
        model=model,
        tokenizer=tokenizer,
        loader=loader,
        loss=StepLoss(model, prepared.reference, run.rehearsal.weight if use_kl else None),
        meter=_make_meter(model, prepared.reference, tokenizer, run),
        alphas=AlphaSampler(model, training.alpha_sampling, training.seed),
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, training, total_steps),
        total_steps=total_steps,
    )


def _total_steps(run: RunConfig, loader: TrainLoader) -> int:
    """`max_steps`, or the steps in which the mix draws `num_train_epochs` times what train holds.

    Packed slots count as full, which they are but for a few tokens; shares of replay and rehearsal
    are counted in rows for padded batches.
    """
    training, data = run.training, run.data
    if training.num_train_epochs is None:
        return training.max_steps
    sources = loader.sources[: len(data.train)]
    rows: float = sum(len(source) for source in sources)
    if data.packing:
        rows = sum(int(source.lengths.sum()) for source in sources) / data.max_length
    rehearsed = run.rehearsal.share if run.rehearsal.enabled else 0.0
    share = 1 - data.replay_share - rehearsed
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return max(math.ceil(training.num_train_epochs * rows / share / per_step), 1)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _load(run: RunConfig) -> Loaded:
    config = run.model
    if config.model_name_or_path is None:
        raise ConfigError("model.model_name_or_path is not set; name a model or a folder.")
    options = LoadOptions(
        revision=config.revision,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        attn_implementation=config.attn_implementation,
        tokenizer=config.tokenizer_name_or_path,
    )
    return load_model(config.model_name_or_path, options)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"model.device={name!r} is not a device; allowed: auto, cpu, cuda."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"model.device={name!r}, but torch sees no GPU; use cpu or auto.")
    return device


def _pack_attention(model: PreTrainedModel) -> None:
    """Let attention keep packed documents apart."""
    register_packed_attention()
    current = model.config.get_text_config(decoder=True)._attn_implementation
    model.set_attn_implementation(packed_attention_for(current))


def _tune_model(model: PreTrainedModel, training: TrainingConfig) -> PreTrainedModel:
    """Set precision and checkpointing for training."""
    if training.mixed_precision == "bf16":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if training.gradient_checkpointing:
        _enable_checkpointing(model)
    return model


def _enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations; the older of the two names is all that transformers 5.17 has."""
    newer, older = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    enable = getattr(model, newer if hasattr(type(model), newer) else older)
    enable({"use_reentrant": False})
    # It also makes embeddings ask for gradients, which only the reentrant kind needs: frozen blocks
    # below the first expanded one would run a backward pass for nothing.
    model.disable_input_require_grads()


def _make_meter(
    model: PreTrainedModel,
    reference: Reference,
    tokenizer: PreTrainedTokenizerBase,
    run: RunConfig,
) -> ForgettingMeter:
    def batches(sources: list[SourceConfig]) -> dict[str, list[Batch]]:
        return {str(source.name): _eval_set(source, tokenizer, run) for source in sources}

    return ForgettingMeter(
        model, reference, learn=batches(run.data.learn), retain=batches(run.data.retain)
    )


def _eval_set(
    source: SourceConfig, tokenizer: PreTrainedTokenizerBase, run: RunConfig
) -> list[Batch]:
    tokens = tokenize_source(source, tokenizer, run.data)
    log.info("Evaluation set %s: %s", source.name, tokens.stats.describe())
    training = run.training
    return eval_batches(
        tokens, tokenizer, run.data, training.per_device_eval_batch_size, training.max_eval_samples
    )
