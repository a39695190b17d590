"""Memory, FLOPs and sizes of a run, from its model's config on the meta device.

| part of memory | exact? |
|---|---|
| weights frozen and trained, gradients, optimizer | to the byte, for the process that holds most |
| activations | what autograd keeps of one micro-batch (`activation_bytes`), no temporaries |
| logits | as the loss makes them: themselves, in float32, and the gradients of both |
| gathered | FSDP: the root and the blocks that are whole at a time |

Allocators, CUDA and libraries take some GiB more.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from controlllm.checkpoint import KINDS, Kind, kind_in, locate, locate_recorded, trained_tensors
from controlllm.common.adapters import carries_base
from controlllm.common.errors import ConfigError
from controlllm.common.packages.quantizers import Quantizer
from controlllm.expansion import ControlLLMConfig, ControlLLMForCausalLM, ExpansionConfig
from controlllm.expansion.files.records import read_sidecar_config
from controlllm.train.config.methods import METHODS
from controlllm.train.config.optimizers import OPTIMIZERS, StateBytes, held
from controlllm.train.config.run_config import RunConfig
from controlllm.train.config.ways import WAYS
from controlllm.train.observe.flops import FlopCount, Flops
from controlllm.train.observe.model_parts import parts_of
from controlllm.train.parallel.mesh import MeshPlan
from controlllm.train.parallel.sharding import sharding_units
from controlllm.train.plan.activation_bytes import activation_bytes, kept_product_bytes
from controlllm.train.setup.methods import SETUPS, asks_base
from controlllm.train.setup.model import tune_model
from controlllm.train.setup.quantize import frozen_linears
from controlllm.train.setup.ways.earlier import stages_before
from controlllm.train.step.liger import fused_chunk

__all__ = ["Estimate", "Memory", "estimate", "model_config", "model_without_weights"]


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by part."""

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    gathered: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Estimate:
    """What a run takes."""

    blocks: int | None  # expanded blocks; None for methods that do not expand
    parameters: int  # numbers of the model
    trained: int  # how many of them train
    memory: Memory  # on the device that holds most
    flops: Flops  # of one optimizer step, on all devices
    tokens: int  # of one optimizer step, on all devices
    checkpoint: int  # bytes of a training checkpoint's tensors


def model_config(run: RunConfig) -> tuple[Any, ExpansionConfig | None]:
    """The config of a run's base, and how it is expanded already.

    Raises:
        ConfigError: the run names no model.
        CheckpointError: there is none where it says.
    """
    model = run.model
    if model.model_name_or_path is None:
        raise ConfigError("model.model_name_or_path is not set; name a model or a folder.")
    location = locate(model.model_name_or_path, model.storage_options)
    name, revision, expansion = location.path, model.revision, None
    kind = None if location.kind is Kind.HUB else kind_in(Path(name))
    if kind is not None and kind.base_of is not None:
        recorded = kind.base_of(Path(name))
        if kind is KINDS["control"]:
            expansion = ExpansionConfig.from_dict(read_sidecar_config(name)["expansion"])
        if model.base:
            name = locate(model.base, model.storage_options).path
        else:
            base = locate_recorded(recorded.get("name_or_path"), name)
            name, revision = base.path, recorded.get("revision")
    config = AutoConfig.from_pretrained(
        name, revision=revision, trust_remote_code=model.trust_remote_code
    )
    if isinstance(config, ControlLLMConfig):
        return config.base_config(), config.expansion_config()
    return config, expansion


def model_without_weights(
    run: RunConfig, config: Any, expansion: ExpansionConfig | None
) -> PreTrainedModel:
    """A run's model as it trains, on the meta device; see `estimate`."""
    config = copy.deepcopy(config)  # Expanding counts its layers anew.
    dtype = config.dtype or torch.float32
    if run.model.dtype != "auto":
        dtype = getattr(torch, run.model.dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=run.model.attn_implementation,
            trust_remote_code=run.model.trust_remote_code,
        )
        if expansion is not None:
            text = config.get_text_config(decoder=True)
            known = {"num_hidden_layers": text.num_hidden_layers, "vocab_size": text.vocab_size}
            settings = ControlLLMConfig(model.config, expansion.to_dict(), known)
            model = ControlLLMForCausalLM(settings, base=model)
        SETUPS.get(run.method).train(model, run)
        return tune_model(model, run.training)


def estimate(
    run: RunConfig, config: Any, expansion: ExpansionConfig | None, mesh: MeshPlan
) -> Estimate:
    """What a run takes.

    Args:
        run: the run config.
        config: of the base (`model_config`).
        expansion: how it is expanded; None for methods that do not expand.
        mesh: how processes share the model.

    Raises:
        ConfigError, ModelError: the model cannot be expanded so.
    """
    training, length = run.training, run.data.max_length
    model = model_without_weights(run, config, expansion)
    rows = training.per_device_train_batch_size * training.micro_batches(mesh.world_size)
    rows *= mesh.world_size
    parts = parts_of(model)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    tensors = trained_tensors(model)
    optimizer = sum(state.saved for state in _optimizer(model, training.optim, 1))
    return Estimate(
        blocks=len(model.blocks) if isinstance(model, ControlLLMForCausalLM) else None,
        parameters=sum(size for size, _ in sizes),
        trained=sum(size for size, trains in sizes if trains),
        flops=FlopCount(parts).of(torch.full((rows,), length)),
        tokens=rows * length,
        checkpoint=sum(map(_bytes, tensors.values())) + optimizer,
        memory=_memory(model, run, mesh),
    )


def _memory(model: PreTrainedModel, run: RunConfig, mesh: MeshPlan) -> Memory:
    """Bytes by part. Call it last: it changes the model."""
    training = run.training
    packed = _packed(model, run.quantizer)
    local = [(_bytes(packed.get(p, p), mesh.parts), p.requires_grad) for p in model.parameters()]
    frozen = sum(size for size, trains in local if not trains)
    if run.quantizer is not None:
        frozen += sum(run.quantizer.beside(*weight.shape) for weight in packed)
    trained = sum(size for size, trains in local if trains)
    moments = sum(state.memory for state in _optimizer(model, training.optim, mesh.parts))
    copies = int(not carries_base(model) and asks_base(run))
    if WAYS.get(run.continue_by).copies_stages:
        copies += len(stages_before(run)) - 1
    # The base or earlier stages are kept, to be asked; one process has what is frozen only once.
    frozen += copies * (trained + (frozen if mesh.world_size > 1 else 0))
    compute = training.autocast_dtype or model.dtype
    rows, length = training.per_device_train_batch_size, run.data.max_length
    gathered = _gathered(model, run, compute) if mesh.world_size > 1 else 0
    activations = 0
    if training.gradient_checkpointing_policy == "selective":
        activations = kept_product_bytes(model, rows * length, compute.itemsize)
    text, chunk = model.config.get_text_config(decoder=True), training.loss_chunk_size
    positions = rows * length if chunk is None else min(chunk, rows * length)
    asks = METHODS.get(run.method).asks_base or run.rehearsal.uses_kl
    kept = 3 if asks else 2  # logits, their gradient, the base's
    if training.fuses_loss:
        positions = fused_chunk(positions, text.vocab_size, text.hidden_size)
    module: nn.Module = model
    module.to(compute)
    activations += activation_bytes(model, rows, length)
    return Memory(
        frozen=frozen,
        trained=trained,
        gradients=trained,
        optimizer=moments,
        activations=activations,
        logits=kept * positions * text.vocab_size * (compute.itemsize + 4),
        gathered=gathered,
    )


def _packed(model: PreTrainedModel, quantizer: Quantizer | None) -> dict[Tensor, Tensor]:
    """What is held in place of weights of frozen linear layers (rows, columns)."""
    if quantizer is None or not isinstance(model, ControlLLMForCausalLM):
        return {}
    weights = [linear.weight for _, _, linear in frozen_linears(model)]
    return {w: w.new_empty(quantizer.shape(*w.shape), dtype=torch.uint8) for w in weights}


def _gathered(model: PreTrainedModel, run: RunConfig, compute: torch.dtype) -> int:
    """What FSDP has whole at a time: the root's own, and the largest units."""
    units = list(sharding_units(model))
    every, *each = (sum(p.numel() for p in module.parameters()) for module in [model, *units])
    numbers = sorted(each, reverse=True)
    at_once = len(units) if not run.parallel.reshard_after_forward else 2 + run.parallel.prefetch
    root = every - sum(numbers)
    return (root + sum(numbers[:at_once])) * compute.itemsize


def _optimizer(model: nn.Module, name: str, parts: int) -> Iterator[StateBytes]:
    """What the optimizer keeps of each parameter that trains."""
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            quantised = "interpolator" not in path.split(".")
            yield OPTIMIZERS.get(name).state_bytes(parameter, parts, quantised)


def _bytes(tensor: Tensor, parts: int = 1) -> int:
    return held(tensor, parts) * tensor.element_size()
