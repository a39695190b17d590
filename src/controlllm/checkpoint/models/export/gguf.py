"""One GGUF file for llama.cpp, Ollama and LM Studio, by way of a plain model."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.export.alphas import told_alphas
from controlllm.checkpoint.models.export.chat_facts import chat_facts, import_findings
from controlllm.checkpoint.models.export.converter import (
    OUTTYPES,
    convert,
    mend_scores,
    read_metadata,
    require_converter,
)
from controlllm.checkpoint.models.export.forms import FORMS, OUTTYPE, Form, expanded
from controlllm.checkpoint.models.export.modelfile import modelfile
from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.facts import setting
from controlllm.common.storage.files import write_text
from controlllm.common.text.progress import stage
from controlllm.expansion import collapse, unroll
from controlllm.expansion.files.card import model_card
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM

__all__ = ["GGUF_FILE", "Gguf"]

GGUF_FILE = "model.gguf"


@FORMS.register("gguf")
@dataclass
class Gguf(Form):
    """A stack is unrolled (exact), all else collapsed; written beside a Modelfile, and checked."""

    tokenizer_beside: ClassVar[bool] = False

    outtype: str = setting(OUTTYPE, choices=OUTTYPES)
    """Numbers in the file: auto = 16 bits, in the kind of the model."""

    def __post_init__(self) -> None:
        """Check the options, and that the converter is there (ConfigError)."""
        super().__post_init__()
        require_converter()

    def write(
        self,
        model: PreTrainedModel,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase | None,
        inplace: bool,
    ) -> None:
        """Write the file, the Modelfile and the card; say what an import will meet."""
        if tokenizer is None:
            raise ConfigError("form='gguf' holds the tokenizer, too: give the model's.")
        chat_facts(tokenizer)  # What cannot chat is refused before anything is computed.
        card = None
        if isinstance(model, ControlLLMForCausalLM):
            stacked = expanded(model, "gguf").expansion.structure == "stack"
            made = "unrolled" if stacked else f"collapsed at alpha {told_alphas(model)}"
            rows = {"made by": made, "numbers": self.outtype}
            card = model_card(model.config, "gguf", rows)
            self.told.append(f"the plain model is {made}")
            model = unroll(model, inplace) if stacked else collapse(model, inplace)
        metadata = self._convert(model, tokenizer, folder)
        self.told += import_findings(model, tokenizer, metadata)
        write_text(folder / "Modelfile", modelfile(GGUF_FILE, tokenizer, model.generation_config))
        if card is not None:
            write_text(folder / "README.md", card)

    def _convert(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
    ) -> dict[str, Any]:
        """The GGUF file of a plain model; what it says of itself (ModelError)."""
        plain = folder / "plain"
        model.save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        with stage("converting to GGUF"):
            convert(plain, folder / GGUF_FILE, self.outtype)
        shutil.rmtree(plain)
        if mend_scores(folder / GGUF_FILE, tokenizer):
            self.told.append(
                "pieces of words: the converter knew no order; that of the merges is in"
            )
        metadata = read_metadata(folder / GGUF_FILE)
        depth = model.config.get_text_config(decoder=True).num_hidden_layers
        blocks = metadata.get(f"{metadata.get('general.architecture')}.block_count")
        if blocks != depth:
            raise ModelError(f"the converter wrote {blocks} blocks of a model that has {depth}.")
        return metadata
