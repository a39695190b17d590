"""A stack as the plain, deeper architecture of its base: exact, and without a dial."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.export.forms import FORMS, Form, expanded
from controlllm.common.storage.files import write_text
from controlllm.expansion import unroll
from controlllm.expansion.files.card import model_card

__all__ = ["Unrolled"]


@FORMS.register("unrolled")
@dataclass
class Unrolled(Form):
    """For whatever loads the base's architecture; only for the structure "stack"."""

    def write(
        self,
        model: PreTrainedModel,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase | None,
        inplace: bool,
    ) -> None:
        """Write what `from_pretrained` reads, with its card."""
        whole = expanded(model, "unrolled")
        card = model_card(whole.config, "unrolled")
        unroll(whole, inplace).save_pretrained(folder)
        write_text(folder / "README.md", card)
