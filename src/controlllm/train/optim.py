"""AdamW with its parameter groups, and the learning-rate schedule as a pure function of the step.

| group | weight decay | learning rate |
|---|---|---|
| `matrices` | `weight_decay` | `learning_rate` |
| `no_decay`: norms, biases and embeddings (a tied LM head is one) | 0 | `learning_rate` |
| `interpolators` | 0 | `interpolator_learning_rate` |

Norms, biases and embeddings are not decayed by common practice (minGPT, OLMo, nanochat): decay
there pulls scales to 0 and rare tokens' rows away between their updates. An interpolator's zero
means "alpha one half", which is no better a place than any other.
"""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import Parameter

from controlllm.common.errors import TrainingError
from controlllm.expansion import ControlLLMForCausalLM
from controlllm.train.training_config import TrainingConfig

__all__ = [
    "learning_rate_factor",
    "make_optimizer",
    "make_scheduler",
    "parameter_groups",
    "warmup_steps",
]


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over everything in `model` that trains.

    Raises:
        TrainingError: if nothing trains.
    """
    groups = parameter_groups(model, config)
    if not groups:
        raise TrainingError(
            "no parameter of the model trains; check expansion.freeze and requires_grad."
        )
    on_gpu = groups[0]["params"][0].device.type == "cuda"
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=config.adam_epsilon, fused=on_gpu)


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """The trained parameters as AdamW groups in a fixed order, each parameter once, none empty.

    Returns:
        Dicts with `name`, `params`, `lr` and `weight_decay`, as the module's table says.
    """
    own_rate = config.interpolator_learning_rate
    rate = config.learning_rate
    groups: dict[str, dict[str, Any]] = {
        "matrices": {"lr": rate, "weight_decay": config.weight_decay},
        "no_decay": {"lr": rate, "weight_decay": 0.0},
        "interpolators": {"lr": rate if own_rate is None else own_rate, "weight_decay": 0.0},
    }
    interpolators = set(_interpolator_parameters(model))
    embeddings = set(_embedding_parameters(model))
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter in interpolators:
            group = "interpolators"
        elif parameter.ndim < 2 or parameter in embeddings:
            group = "no_decay"
        else:
            group = "matrices"
        groups[group].setdefault("params", []).append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if "params" in group]


def _interpolator_parameters(model: nn.Module) -> Iterator[Parameter]:
    if isinstance(model, ControlLLMForCausalLM):
        for _, parameter in model.trainable_parameter_groups()["interpolator"]:
            yield parameter


def _embedding_parameters(model: nn.Module) -> Iterator[Parameter]:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield from module.parameters(recurse=False)


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of `learning_rate_factor` for every group of the optimizer.

    A run that ends within its warm-up learns next to nothing, which looks like perfect retention:
    it is warned of.
    """
    warmup = warmup_steps(config, total_steps)
    if warmup >= total_steps:
        warnings.warn(
            f"training.warmup_steps={warmup} is not shorter than the run ({total_steps} steps): "
            "the learning rate never reaches its peak. Lower it, or train longer.",
            stacklevel=2,
        )
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, config, total_steps)
    )


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Steps of warm-up: `warmup_steps` itself, or below 1 that share of all steps."""
    steps = config.warmup_steps
    return int(steps) if steps >= 1 else round(steps * total_steps)


def learning_rate_factor(step: int, config: TrainingConfig, total_steps: int) -> float:
    """The learning rate of a step as a share of the peak.

    Linear from 1/(w+1) to 1 over w warm-up steps (never 0: no step is wasted), then by
    `lr_scheduler_type` down to `min_learning_rate_ratio` at `total_steps`.

    Args:
        step: optimizer steps already done, from 0.
        config: the schedule's shape.
        total_steps: length of the schedule.
    """
    warmup = warmup_steps(config, total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.lr_scheduler_type == "constant":
        return 1.0
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    linear = config.lr_scheduler_type == "linear"
    height = 1 - progress if linear else (1 + math.cos(math.pi * progress)) / 2
    low = config.min_learning_rate_ratio
    return low + (1 - low) * height
