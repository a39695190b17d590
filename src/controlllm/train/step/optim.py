"""The optimizer with its parameter groups; the learning rate follows a schedule of `schedules`.

| group | weight decay | learning rate |
|---|---|---|
| `matrices` | `weight_decay`, or `weight_decay_ratio` times the current rate | `learning_rate` |
| `no_decay`: norms, biases and embeddings (a tied LM head is one) | 0 | `learning_rate` |
| `interpolators` | 0 | `interpolator_learning_rate` |

Norms, biases and embeddings are not decayed by common practice (minGPT, OLMo, nanochat): decay
there pulls scales to 0 and rare tokens' rows away between their updates. An interpolator's zero
means "alpha one half", which is no better a place than any other.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import Parameter

from controlllm.common.errors import TrainingError
from controlllm.common.registry import Registry
from controlllm.common.tensors import whole_shape
from controlllm.expansion import ControlLLMForCausalLM
from controlllm.train.config.optimizers import LOW_BIT, OPTIMIZERS, Optimizer
from controlllm.train.config.training_config import TrainingConfig
from controlllm.train.step.low_bit import low_bit_adamw
from controlllm.train.step.schedules import check_schedule, learning_rate_factor

__all__ = [
    "MAKERS",
    "decay_by_rate",
    "make_optimizer",
    "make_scheduler",
    "parameter_groups",
    "register_optimizer",
]

Make = Callable[[list[dict[str, Any]], tuple[float, float], float], torch.optim.Optimizer]
"""(groups of parameters, betas, epsilon) -> an optimizer."""

MAKERS: Registry[Make] = Registry("training.optim")
"""What makes each of `OPTIMIZERS`, by its name."""

FUSED = ("cuda",)
"""Devices that update all tensors in one kernel. A CPU could, 4 to 7 times as quickly, but its
kernel rounds the ends of tensors otherwise: weights would depend on how they are cut into parts."""


def register_optimizer(name: str, optimizer: Optimizer, make: Make) -> None:
    """Register an optimizer: its facts, and what makes it (ConfigError: the name is taken)."""
    OPTIMIZERS.register(name)(optimizer)
    MAKERS.register(name)(make)


def _adamw(
    groups: list[dict[str, Any]], betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    fused = groups[0]["params"][0].device.type in FUSED
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=fused)


MAKERS.register("adamw")(_adamw)
for _name, _kind in LOW_BIT.items():
    MAKERS.register(_name)(partial(low_bit_adamw, _name, _kind))


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer of everything in `model` that trains.

    Raises:
        TrainingError: if nothing trains.
        ConfigError: the optimizer's package is not installed, or it cannot follow how the model is
            sharded.
    """
    groups = parameter_groups(model, config)
    if not groups:
        raise TrainingError(
            "no parameter of the model trains; check expansion.freeze and requires_grad."
        )
    betas = (config.adam_beta1, config.adam_beta2)
    optimizer = MAKERS.get(config.optim)(groups, betas, config.adam_epsilon)
    if config.weight_decay_ratio is not None:
        decay_by_rate(optimizer, config.weight_decay_ratio)
    return optimizer


def decay_by_rate(optimizer: torch.optim.Optimizer, ratio: float) -> None:
    """Let the weight decay of the matrices follow their learning rate, as the authors' code does.

    Before each step `weight_decay = ratio * lr`. AdamW multiplies that by the rate once more, so a
    step scales a matrix by

        1 - lr * weight_decay = 1 - ratio * lr^2

    besides its update: at ratio 0.1 and a rate of 5e-5 by 1 - 2.5e-10, which no float32 weight
    shows. (In the authors' loop each step has the decay of the rate before it; and norms and
    embeddings decay, too.)
    """

    def follow(stepping: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in stepping.param_groups:
            if group["name"] == "matrices":
                # A tensor where the rate is one: a number would be compiled anew at each step.
                group["weight_decay"] = ratio * group["lr"]

    optimizer.register_step_pre_hook(follow)


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """The trained parameters as groups in a fixed order, each parameter once, none empty.

    Returns:
        Dicts with `name`, `params`, `lr` and `weight_decay`, as the module's table says.
    """
    rate, own_rate = config.learning_rate, config.interpolator_learning_rate
    groups: dict[str, dict[str, Any]] = {
        "matrices": {"lr": rate, "weight_decay": config.weight_decay},
        "no_decay": {"lr": rate, "weight_decay": 0.0},
        "interpolators": {"lr": rate if own_rate is None else own_rate, "weight_decay": 0.0},
    }
    interpolators = set[Parameter]()
    if isinstance(model, ControlLLMForCausalLM):
        interpolators = {p for _, p in model.trainable_parameter_groups()["interpolator"]}
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    embeddings = {p for table in tables for p in table.parameters(recurse=False)}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter in interpolators:
            group = "interpolators"
        elif len(whole_shape(parameter)) < 2 or parameter in embeddings:
            group = "no_decay"
        else:
            group = "matrices"
        groups[group].setdefault("params", []).append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if "params" in group]


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of `learning_rate_factor` for every group of the optimizer.

    Raises:
        ConfigError: the schedule does not fit into the run (`check_schedule`).
    """
    check_schedule(config, total_steps)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, config, total_steps)
    )
