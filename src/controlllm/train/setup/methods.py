"""How a base model becomes one that trains, and what computes its base afterwards.

| method | what trains | the base stays available as |
|---|---|---|
| `control` | the expanded blocks, interpolators and ends | the same model, expansion disabled |
| `control`, `peft.type` | these, and adapters on other blocks | the same model, both disabled |
| `stack` | copies after their blocks (LLaMA-Pro) | the same model, expansion disabled |
| `lora` | PEFT's adapters on the base | the same model, adapters disabled |
| `full` | every weight | a frozen copy |
| `replay` | every weight; old data is part of the mix | a frozen copy |
| `kl` | every weight, held to the base's predictions | a frozen copy |
| `freeze` | a few blocks | a frozen copy |

A copy is kept only where something asks it; in a run of one process, frozen weights are common to
model and copy. A method of your own joins by `register_method`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from controlllm.common.adapters import carries_base, has_adapters
from controlllm.common.errors import ConfigError
from controlllm.common.registry import Registry
from controlllm.evaluate import Reference
from controlllm.expansion import (
    AdapterConfig,
    ControlLLMForCausalLM,
    ExpansionConfig,
    add_adapters,
    expand,
    quantised_layers,
)
from controlllm.expansion.files.base_record import forget_base
from controlllm.expansion.surgery.anatomy import examine
from controlllm.train.config.method_config import check_alphas
from controlllm.train.config.methods import METHODS, Method
from controlllm.train.config.run_config import RunConfig
from controlllm.train.setup.copies import frozen_copy

__all__ = ["SETUPS", "Setup", "asks_base", "prepare_model", "register_method"]


@dataclass(frozen=True)
class Setup:
    """What a method does to a model."""

    train: Callable[[PreTrainedModel, RunConfig], object]
    """Sets up what trains, in place; gets the base, or what became of it by expansion."""
    continues: Callable[[PreTrainedModel], bool] = lambda model: False
    """Which trained models it takes besides a plain base, to train them further."""


SETUPS: Registry[Setup] = Registry("method")
"""What each of `METHODS` does, by its name."""


def register_method(name: str, method: Method, setup: Setup) -> None:
    """Register a method: its facts, and what it does (ConfigError: the name is taken)."""
    METHODS.register(name)(method)
    SETUPS.register(name)(setup)


def prepare_model(
    base: PreTrainedModel, run: RunConfig, world_size: int = 1
) -> tuple[PreTrainedModel, Reference | None]:
    """Make `base` ready to train by `run.method`; it is taken over and changed in place.

    Args:
        base: a plain model, or a trained one to train further.
        run: the run config.
        world_size: processes that will share it.

    Returns:
        What trains (`requires_grad` says which of its parameters do), and its base; None where
        nothing in the run asks the base.

    Raises:
        ConfigError: the method cannot train such a model.
    """
    method, setup = METHODS.get(run.method), SETUPS.get(run.method)
    _refuse_trained(base, setup, run)
    forget_base(base)
    model = base
    if method.expands and not isinstance(base, ControlLLMForCausalLM):
        model = expand(base, run.expansion)
    elif isinstance(base, ControlLLMForCausalLM) and method.expands:
        if run.continue_from is None and run.expansion != method.settle(ExpansionConfig()):
            _warn("is expanded already and is trained", "expansion", run)
        check_alphas(base.expansion, run.training)
    setup.train(model, run)
    if carries_base(model):
        return model, Reference(model)
    if not asks_base(run):
        return model, None
    return model, Reference(model, copy=frozen_copy(model, shares=world_size == 1))


def asks_base(run: RunConfig) -> bool:
    """Whether anything in a run asks the base."""
    measured = run.measures or run.evaluation.suite
    return bool(measured or run.rehearsal.uses_kl or METHODS.get(run.method).asks_base)


def _refuse_trained(base: PreTrainedModel, setup: Setup, run: RunConfig) -> None:
    """A model that carries another base would be taken for a base."""
    if not carries_base(base) or setup.continues(base):
        return
    what = "has adapters" if has_adapters(base) else "is an expanded model"
    fitting = "lora" if has_adapters(base) and not _is_expanded(base) else "control"
    raise ConfigError(
        f"method={run.method!r} got {run.model.model_name_or_path or 'a model'}, which {what}; use "
        f"method={fitting!r} to train it further, or make a plain model of it first "
        "(`controlllm export`)."
    )


def _warn(what: str, section: str, run: RunConfig) -> None:
    warnings.warn(
        f"{run.model.model_name_or_path or 'the model'} {what} further as it is; the settings "
        f"under `{section}` are not used.",
        stacklevel=4,
    )


def _is_expanded(model: PreTrainedModel) -> bool:
    return isinstance(model, ControlLLMForCausalLM)


def _is_stacked(model: PreTrainedModel) -> bool:
    return isinstance(model, ControlLLMForCausalLM) and model.expansion.structure == "stack"


def _train_adapters(model: PreTrainedModel, run: RunConfig) -> None:
    """Put adapters in; those that are there already are trained further as they are."""
    if not has_adapters(model):
        if run.adapters:
            add_adapters(model, run.peft, run.training.seed)
    elif run.peft != AdapterConfig(run.peft.type):
        _warn("has adapters already, and trains them", "peft", run)


def _refuse_quantised(model: PreTrainedModel, run: RunConfig) -> None:
    if next(quantised_layers(model), None) is not None:
        raise ConfigError(
            f"method={run.method!r} trains the base, and "
            f"{run.model.model_name_or_path or 'this one'} is quantised; load it unquantised, or "
            "use method='control'."
        )


def _train_all(model: PreTrainedModel, run: RunConfig) -> None:
    _refuse_quantised(model, run)
    model.requires_grad_(True)


def _train_blocks(model: PreTrainedModel, run: RunConfig) -> None:
    _refuse_quantised(model, run)
    anatomy = examine(model)
    model.requires_grad_(False)
    for layer in run.freeze.trained_layers(anatomy.num_layers):
        anatomy.layers[layer].requires_grad_(True)
    parts = {"embeddings": anatomy.embedding, "norm": anatomy.norm, "head": anatomy.head}
    for group in run.freeze.also_train:
        part = parts[group]
        if part is None:
            raise ConfigError(f"freeze.also_train names {group!r}, which the model does not have.")
        part.requires_grad_(True)


for _name, _setup in {
    "control": Setup(_train_adapters, continues=_is_expanded),
    "stack": Setup(lambda model, run: None, continues=_is_stacked),  # `expand` says what trains.
    "lora": Setup(_train_adapters, continues=lambda model: not _is_expanded(model)),
    "full": Setup(_train_all),
    "replay": Setup(_train_all),
    "kl": Setup(_train_all),
    "freeze": Setup(_train_blocks),
}.items():
    SETUPS.register(_name)(_setup)
