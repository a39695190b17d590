"""A callback for `transformers.Trainer` and the trainers built on it."""

from pathlib import Path
from typing import Any, Protocol

from torch import nn
from transformers import TrainerCallback

from controlllm.common.errors import ModelError
from controlllm.common.tensors import whole
from controlllm.expansion.files.sidecar import base_fingerprint, save_sidecar, sidecar_tensors
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM

__all__ = ["ADAPTERS", "ControlLLMCallback"]

ADAPTERS = "controlllm_adapters"
"""The attribute of a base that keeps its adapters: PEFT's wrapper is not always there."""


class Accumulates(Protocol):
    """What is told over how many micro-batches a loss is averaged."""

    gradient_accumulation_steps: int | None


class ControlLLMCallback(TrainerCallback):
    """Tells an expanded model what its trainer does, and saves its sidecar with each checkpoint.

    Trainers that compute their loss outside the model (TRL's, and any with a loss function of its
    own) need it with `gradient_accumulation_steps` above 1: the divergence is injected by the
    blocks, which cannot know over how many micro-batches the loss is averaged.

    A base that carries Control LLM adapters of PEFT (`controlllm.integrations.peft`) is told the
    same; its adapters are saved by PEFT, and no sidecar is written beside them.

    >>> SFTTrainer(model, ..., callbacks=[ControlLLMCallback()])               # doctest: +SKIP
    """

    def on_init_end(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Note which base it is, before the trainer cuts its weights into parts."""
        expanded = self.find(model)
        if isinstance(expanded, ControlLLMForCausalLM):
            base_fingerprint(expanded)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Tell the model how many micro-batches make a step.

        Raises:
            ModelError: if the model that trains holds no expanded model.
        """
        self.find(model).gradient_accumulation_steps = args.gradient_accumulation_steps

    def on_save(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Write the sidecar into the checkpoint's folder; of several processes, the first does."""
        expanded = self.find(model)
        if not isinstance(expanded, ControlLLMForCausalLM):
            return
        # Collective where they are in parts; one after the other, so that one at a time is whole.
        tensors = {n: whole(part).detach().cpu() for n, part in sidecar_tensors(expanded).items()}
        if state.is_world_process_zero:
            folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / "sidecar"
            save_sidecar(expanded, folder, overwrite=True, tensors=tensors)

    @staticmethod
    def find(model: nn.Module | None) -> ControlLLMForCausalLM | Accumulates:
        """The expanded model or the adapters, wherever wrappers (DDP, PEFT) hold them.

        Raises:
            ModelError: if there is none.
        """
        for module in model.modules() if model is not None else ():
            if isinstance(module, ControlLLMForCausalLM):
                return module
            if ADAPTERS in vars(module):
                return vars(module)[ADAPTERS]
        raise ModelError(
            f"ControlLLMCallback found no expanded model in {type(model).__name__}; "
            "give the trainer a model made by controlllm.expand() or with a ControlLLMPeftConfig."
        )

    @classmethod
    def find_expanded(cls, model: nn.Module | None) -> ControlLLMForCausalLM:
        """As `find`, but refuses an expansion that is an adapter of PEFT.

        Raises:
            ModelError: if there is no expanded model, or it is such an adapter.
        """
        found = cls.find(model)
        if not isinstance(found, ControlLLMForCausalLM):
            raise ModelError(
                "Here a model made by controlllm.expand() is needed; this one's expansion is an "
                "adapter of PEFT, which PEFT saves, and which TRL disables for its reference."
            )
        return found
