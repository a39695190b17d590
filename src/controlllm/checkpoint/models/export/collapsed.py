"""The base's own class, the trained parts folded in by weight: an approximation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.export.alphas import told_alphas
from controlllm.checkpoint.models.export.forms import FORMS, Form, expanded
from controlllm.common.storage.files import write_text
from controlllm.expansion import BranchedForCausalLM, collapse
from controlllm.expansion.files.card import model_card

__all__ = ["Collapsed"]


@FORMS.register("collapsed")
@dataclass
class Collapsed(Form):
    """The base's architecture and cost; report its score beside that of the expanded model."""

    def write(
        self,
        model: PreTrainedModel,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase | None,
        inplace: bool,
    ) -> None:
        """Write what `from_pretrained` reads, with its card."""
        whole: Any = model
        if not isinstance(model, BranchedForCausalLM):  # whose sidecars are folded together
            whole = expanded(model, "collapsed")
        card = model_card(whole.config, "collapsed", {"folded at alpha": told_alphas(whole)})
        self.told.append(f"folded at alpha {told_alphas(whole)}")
        collapse(whole, inplace).save_pretrained(folder)
        write_text(folder / "README.md", card)
