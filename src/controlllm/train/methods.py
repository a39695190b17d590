"""How a base model becomes one that trains, and who answers for its base afterwards.

| method | what trains | the base stays available as |
|---|---|---|
| `control` | the expanded blocks, interpolators and ends | the same model, expansion disabled |
| `full` | every weight | a frozen copy |

A new method is one more function under `@METHODS.register("name")`.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from controlllm.common.errors import ConfigError
from controlllm.common.registry import Registry
from controlllm.evaluate import Reference
from controlllm.expansion import ControlLLMForCausalLM, ExpansionConfig, expand
from controlllm.expansion.quantised import quantised_layers
from controlllm.train.config import RunConfig

__all__ = ["METHODS", "Prepared", "prepare_model"]


@dataclass(frozen=True)
class Prepared:
    """A model ready to train.

    Attributes:
        model: what trains; `requires_grad` says which of its parameters do.
        reference: its base; None where nothing in the run asks it.
    """

    model: PreTrainedModel
    reference: Reference | None


METHODS: Registry[Callable[[PreTrainedModel, RunConfig], Prepared]] = Registry("method")
"""Methods by the name used in the run config."""


def prepare_model(base: PreTrainedModel, run: RunConfig) -> Prepared:
    """Make `base` ready to train by `run.method`; it is taken over and changed in place."""
    return METHODS.get(run.method)(base, run)


@METHODS.register("control")
def _control(base: PreTrainedModel, run: RunConfig) -> Prepared:
    """Expand; a model that is expanded already is trained further as it is."""
    if isinstance(base, ControlLLMForCausalLM):
        _warn_of_unused(run)
        return Prepared(base, Reference(base))
    model = expand(base, run.expansion)
    return Prepared(model, Reference(model))


def _warn_of_unused(run: RunConfig) -> None:
    """The settings of an expansion that is not made would otherwise be ignored in silence."""
    if run.expansion != ExpansionConfig():
        warnings.warn(
            f"{run.model.model_name_or_path or 'the model'} is expanded already and is trained "
            "further as it is; the settings under `expansion` are not used.",
            stacklevel=4,
        )


@METHODS.register("full")
def _full(base: PreTrainedModel, run: RunConfig) -> Prepared:
    """Train all weights; a frozen copy of the base is kept only if something will ask it."""
    if isinstance(base, ControlLLMForCausalLM):
        raise ConfigError(
            f"method='full' got {run.model.model_name_or_path}, which is an expanded model; "
            "use method='control' to train it further, or collapse it first."
        )
    if next(quantised_layers(base), None) is not None:
        raise ConfigError(
            f"method='full' trains the base, and {run.model.model_name_or_path or 'this one'} is "
            "quantised; load it unquantised, or use method='control'."
        )
    reference = None
    if run.data.learn or run.data.retain or run.rehearsal.uses_kl:
        reference = Reference(base, copy=copy.deepcopy(base).requires_grad_(False).eval())
    return Prepared(base.requires_grad_(True), reference)
