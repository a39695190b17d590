"""TRL's trainers on an expanded model; a reference model, where one is needed, is the base inside.

    trainer = ControlLLMDPOTrainer(expand(base), args=DPOConfig(...), train_dataset=pairs,
                                   processing_class=tokenizer)

TRL loads the reference of DPO and GRPO as a second model, unless the model is one of PEFT's, whose
adapters can be disabled. An expanded model can do the same, but TRL asks for PEFT's own class. So
these trainers put a `BaseReference` where TRL keeps its reference model (`trainer.ref_model`).

| trainer | TRL's |
|---|---|
| `ControlLLMSFTTrainer` | `SFTTrainer` |
| `ControlLLMDPOTrainer`, `ControlLLMKTOTrainer` | with a `BaseReference`, or the one given |
| `ControlLLMGRPOTrainer`, `ControlLLMRLOOTrainer` | with a `BaseReference` where `beta` is not 0 |
"""

import copy
from collections.abc import Sequence
from typing import Any

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
from controlllm.integrations.callback import ControlLLMCallback
from controlllm.integrations.reference import BaseReference

__all__ = [
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


class OnExpandedModel:
    """What all trainers here do beside TRL's; mixed in before it.

    `ControlLLMCallback` comes by itself, and each step tells the model exactly over how many
    micro-batches it accumulates, the shorter one at the end of an epoch included.
    """

    _expanded: Any
    current_gradient_accumulation_steps: int

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
        trainer: Any = super()  # TRL's class comes after this one
        trainer.__init__(model, args=args, callbacks=callbacks, **options)
        self._expanded = ControlLLMCallback.find(model)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's, once the model knows of how many micro-batches the step consists."""
        trainer: Any = super()
        self._expanded.gradient_accumulation_steps = self.current_gradient_accumulation_steps
        loss: Tensor = trainer.training_step(*args, **kwargs)
        return loss


class GivenReference(OnExpandedModel):
    """For trainers that take their reference model as an argument."""

    def __init__(
        self, model: nn.Module, *, args: Any = None, ref_model: Any = None, **options: Any
    ) -> None:
        refuse(model, args, options)
        if ref_model is None:
            refuse_synchronising(args)
            plugin = getattr(args, "deepspeed_plugin", None)
            if plugin is not None and plugin.zero_stage == 3:  # It asks for a first parameter.
                raise ConfigError(
                    "DeepSpeed's ZeRO-3 takes no reference model without parameters, as the base "
                    "inside the model is one. Use ZeRO-2 or FSDP2, or give a ref_model."
                )
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
        ModelError: if the model is not expanded, or its base, as a reference, is not frozen.
        ConfigError: for options that cannot work on one.
    """


class ControlLLMDPOTrainer(GivenReference, DPOTrainer):
    """TRL's `DPOTrainer`, with the arguments and errors of `ControlLLMSFTTrainer`.

    `args` is a `DPOConfig`. The reference is the base inside the model, or the `ref_model` given,
    such as the model that DPO begins with.
    """


class ControlLLMKTOTrainer(GivenReference, KTOTrainer):
    """TRL's `KTOTrainer`, as `ControlLLMDPOTrainer`; `args` is a `KTOConfig`."""


class ControlLLMGRPOTrainer(LoadedReference, GRPOTrainer):
    """TRL's `GRPOTrainer`, with the arguments and errors of `ControlLLMSFTTrainer`.

    `args` is a `GRPOConfig`; a `beta` above 0 weighs the KL to the base inside the model.
    """


class ControlLLMRLOOTrainer(LoadedReference, RLOOTrainer):
    """TRL's `RLOOTrainer`, as `ControlLLMGRPOTrainer`; `args` is an `RLOOConfig`."""


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
    """Refuse a reference model that would be updated from the policy (ConfigError)."""
    if getattr(args, "sync_ref_model", False):
        raise ConfigError(
            "sync_ref_model=True, but the reference is the base inside the model, which never "
            "changes. Leave it out, or give DPO or KTO a second expanded model as ref_model."
        )
