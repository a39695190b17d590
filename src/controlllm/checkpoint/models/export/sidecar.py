"""The trained tensors with their config and card, apart from their base."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.export.forms import FORMS, Form, expanded
from controlllm.expansion.files.sidecar import save_sidecar

__all__ = ["Sidecar"]


@FORMS.register("sidecar")
@dataclass
class Sidecar(Form):
    """The trained tensors only; they are put beside the base when loaded."""

    trained_only: ClassVar[bool] = True

    def write(
        self,
        model: PreTrainedModel,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase | None,
        inplace: bool,
    ) -> None:
        """Write what `load_sidecar` reads."""
        save_sidecar(expanded(model, "sidecar"), folder)
