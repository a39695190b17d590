"""The adapters of a base, as PEFT reads them, and which base it was."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.export.forms import FORMS, Form
from controlllm.checkpoint.training.kinds import HANDLERS
from controlllm.checkpoint.training.saved import BASE_RECORD, KINDS
from controlllm.common.errors import ModelError
from controlllm.common.storage.files import save_tensors, write_json
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM

__all__ = ["Adapter"]


@FORMS.register("adapter")
@dataclass
class Adapter(Form):
    """The adapters of a base that is not expanded."""

    has_dial: ClassVar[bool] = False
    trained_only: ClassVar[bool] = True

    def write(
        self,
        model: PreTrainedModel,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase | None,
        inplace: bool,
    ) -> None:
        """Write what PEFT reads."""
        kind, handler = KINDS["adapters"], HANDLERS["adapters"]
        if isinstance(model, ControlLLMForCausalLM) or not handler.holds(model):
            raise ModelError(
                f"form='adapter' needs a base with adapters, and {type(model).__name__} is none; "
                "an expanded model's adapters are part of its 'sidecar'."
            )
        tensors = {n: t.detach().cpu().contiguous() for n, t in handler.tensors(model).items()}
        described = handler.describe(model)
        save_tensors(folder / kind.weights, tensors, {"format": "pt"})
        write_json(folder / kind.config, described["config"])
        write_json(folder / BASE_RECORD, described["base"])
