"""TRL's trainers on an expanded model; a reference model, where one is needed, is the base inside.

    trainer = ControlLLMDPOTrainer(expand(base), args=DPOConfig(...), train_dataset=pairs,
                                   processing_class=tokenizer)

TRL loads the reference of DPO and GRPO as a second model, unless the model is one of PEFT's, whose
adapters can be disabled. An expanded model can do the same: `disable_adapter()` gives the base, bit
for bit. As TRL asks for PEFT's own class, these trainers put the base inside the model where TRL
keeps a reference model (`trainer.ref_model`); all else is TRL's.

| trainer | TRL's |
|---|---|
| `ControlLLMSFTTrainer` | `SFTTrainer` |
| `ControlLLMDPOTrainer`, `ControlLLMKTOTrainer` | with a `BaseReference`, or the one given |
| `ControlLLMGRPOTrainer`, `ControlLLMRLOOTrainer` | with a `BaseReference` where `beta` is not 0 |
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import (  # type: ignore[attr-defined]  # its names are lazy
    DPOTrainer,
    GRPOTrainer,
    KTOTrainer,
    RLOOTrainer,
    SFTTrainer,
)

from controlllm.common.errors import ConfigError, ModelError
from controlllm.expansion.config import FROZEN_GROUPS
from controlllm.expansion.sidecar import sidecar_tensors
from controlllm.integrations.callback import ControlLLMCallback

__all__ = [
    "BaseReference",
    "ControlLLMDPOTrainer",
    "ControlLLMGRPOTrainer",
    "ControlLLMKTOTrainer",
    "ControlLLMRLOOTrainer",
    "ControlLLMSFTTrainer",
]

REFUSED = {
    "use_liger_kernel": "Liger chooses its kernels by the type of the model and has none for "
    "'controlllm', so it would do nothing. Apply it to the base before expand(), if at all",
    "cast_lm_head_to_fp32": "TRL would hang the base's head into the model a second time, under "
    "another name. Load the base in float32 instead",
}
"""Options of TRL's that cannot work on an expanded model, and why."""


class BaseReference(nn.Module):
    """The base inside an expanded model, as a reference model without any weights of its own.

    A call runs the policy itself without gradients, with its expansion (and PEFT's adapters around
    it) disabled, in evaluation mode: what a second copy of the base would give.

    Args:
        model: the expanded model, or PEFT's model around it.

    Raises:
        ModelError: if there is no expanded model in it, or parts of its base train.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        expanded = ControlLLMCallback.find(model)
        changing = sorted(set(FROZEN_GROUPS) - set(expanded.expansion.frozen_groups))
        if changing:
            raise ModelError(
                f"{', '.join(changing)} of the base train too (expansion.freeze), so it is no "
                "reference. Leave freeze out (expand_ends=True trains copies of the ends instead), "
                "or give DPO another ref_model."
            )
        # In a tuple: the policy must not become a part of this module, which owns nothing.
        self._models: tuple[Any, Any] = (model, expanded)

    @property
    def config(self) -> Any:
        """The expanded model's config."""
        return self._models[1].config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The policy's own output for the same arguments, computed by the base.

        TRL and accelerate give every model that they prepare another `forward`. They have done so
        with the policy, so the one that they give this module is never needed.

        Raises:
            ModelError: if `labels` hold tokens that were added to the base.
        """
        policy, expanded = self._models
        self._refuse_added_tokens(kwargs.get("labels"))
        with (
            torch.no_grad(),
            expanded.disable_adapter(),
            policy.disable_adapter(),
            evaluating(policy),
        ):
            return policy(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The base's tensors: TRL tells by them for which reference it has cached something."""
        expanded = self._models[1]
        trained = {f"base.{name}" for name in sidecar_tensors(expanded)}
        return {k: v for k, v in expanded.state_dict().items() if k not in trained}

    def _refuse_added_tokens(self, labels: Tensor | None) -> None:
        known, grown = (self.config.base.get(k) for k in ("vocab_size", "grown_vocab_size"))
        if grown is not None and labels is not None and bool((labels >= known).any()):
            raise ModelError(
                f"The reference is the base, which knows {known} tokens. These rows hold tokens "
                "added since, to which it gives no probability: leave them out of completions, or "
                "give DPO another ref_model, which knows them."
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, all modules are in evaluation mode; each goes back to its own afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class OnExpandedModel:
    """What all trainers here do beside TRL's; mixed in before it.

    `ControlLLMCallback` comes by itself, and each step tells the model exactly over how many
    micro-batches it accumulates, the shorter one at the end of an epoch included.
    """

    _expanded: Any

    def __init__(
        self,
        model: nn.Module,
        *,
        args: Any = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        **options: Any,
    ) -> None:
        refuse(model, args, options)
        callbacks = list(callbacks or ())
        if not any(isinstance(callback, ControlLLMCallback) for callback in callbacks):
            callbacks.append(ControlLLMCallback())
        super().__init__(model, args=args, callbacks=callbacks, **options)  # type: ignore[call-arg]
        self._expanded = ControlLLMCallback.find(model)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's, once the model knows of how many micro-batches the step consists."""
        steps = self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        self._expanded.gradient_accumulation_steps = steps
        return super().training_step(*args, **kwargs)  # type: ignore[misc]


class GivenReference(OnExpandedModel):
    """For trainers that take their reference model as an argument."""

    def __init__(
        self, model: nn.Module, *, args: Any = None, ref_model: Any = None, **options: Any
    ) -> None:
        refuse(model, args, options)
        if ref_model is None:
            refuse_synchronising(args)
            ref_model = BaseReference(model)
        super().__init__(model, args=args, ref_model=ref_model, **options)


class LoadedReference(OnExpandedModel):
    """For trainers that load their reference model by themselves, where `beta` is not 0."""

    def __init__(self, model: nn.Module, *, args: Any, **options: Any) -> None:
        refuse(model, args, options)
        refuse_synchronising(args)
        beta = args.beta
        reference: Any = None if beta == 0.0 else BaseReference(model)
        args = copy.copy(args)
        args.beta = 0.0  # with another value TRL loads a model
        super().__init__(model, args=args, **options)
        self.beta = args.beta = beta
        self.ref_model = reference


class ControlLLMSFTTrainer(OnExpandedModel, SFTTrainer):
    """TRL's `SFTTrainer` on an expanded model.

    Args:
        model: the expanded model, or PEFT's model around it.
        args: `SFTConfig`.
        callbacks: further callbacks.
        **options: TRL's other arguments, by name.

    Raises:
        ModelError: if the model is not expanded.
        ConfigError: for options that cannot work on one.
    """


class ControlLLMDPOTrainer(GivenReference, DPOTrainer):
    """TRL's `DPOTrainer` on an expanded model; the reference is the base inside it.

    Args:
        model: the expanded model, or PEFT's model around it.
        args: `DPOConfig`.
        ref_model: another reference, such as the model that DPO begins with; None = the base.
        callbacks: further callbacks.
        **options: TRL's other arguments, by name.

    Raises:
        ModelError: if the model is not expanded, or its base is not frozen.
        ConfigError: for options that cannot work on one.
    """


class ControlLLMKTOTrainer(GivenReference, KTOTrainer):
    """TRL's `KTOTrainer` on an expanded model, with the arguments of `ControlLLMDPOTrainer`.

    `args` is a `KTOConfig`.
    """


class ControlLLMGRPOTrainer(LoadedReference, GRPOTrainer):
    """TRL's `GRPOTrainer` on an expanded model; the reference is the base inside it.

    Args:
        model: the expanded model, or PEFT's model around it.
        args: `GRPOConfig`; a `beta` above 0 weighs the KL to the base.
        callbacks: further callbacks.
        **options: TRL's other arguments, by name.

    Raises:
        ModelError: if the model is not expanded, or its base is not frozen.
        ConfigError: for options that cannot work on one.
    """


class ControlLLMRLOOTrainer(LoadedReference, RLOOTrainer):
    """TRL's `RLOOTrainer` on an expanded model, with the arguments of `ControlLLMGRPOTrainer`.

    `args` is an `RLOOConfig`.
    """


def refuse(model: Any, args: Any, options: dict[str, Any]) -> None:
    """Check what a trainer is given.

    Raises:
        ModelError: if the model is not expanded.
        ConfigError: for options that cannot work on an expanded model.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"The model is {model!r}; give the trainer one that is expanded already: "
            "expand(AutoModelForCausalLM.from_pretrained(...))."
        )
    ControlLLMCallback.find(model)
    for name, why in REFUSED.items():
        if getattr(args, name, False):
            raise ConfigError(f"{name}=True on an expanded model: {why}.")
    if options.get("peft_config") is not None:
        raise ConfigError(
            "peft_config on an expanded model: PEFT would freeze the expanded blocks. Wrap the "
            "model with get_peft_model() yourself, and let the expanded blocks train again."
        )


def refuse_synchronising(args: Any) -> None:
    """Check that the reference may stay what it is.

    Raises:
        ConfigError: if it shall follow the policy.
    """
    if getattr(args, "sync_ref_model", False):
        raise ConfigError(
            "sync_ref_model=True, but the reference is the base inside the model, which never "
            "changes. Leave it out, or give DPO or KTO a second expanded model as ref_model."
        )
