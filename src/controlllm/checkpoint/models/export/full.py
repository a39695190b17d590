"""The whole model: base and trained parts in one, for any process to load."""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.export.forms import FORMS, Form
from controlllm.common.adapters import has_adapters, merge_adapters
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM

__all__ = ["Full"]

log = logging.getLogger(__name__)


@FORMS.register("full")
@dataclass
class Full(Form):
    """The whole model, adapters merged; an expanded one writes its own card and modelling file."""

    def write(
        self,
        model: PreTrainedModel,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase | None,
        inplace: bool,
    ) -> None:
        """Write what `from_pretrained` reads."""
        if has_adapters(model):
            model = model if inplace else copy.deepcopy(model)
            merge_adapters(model)
            if isinstance(model, ControlLLMForCausalLM):
                log.warning(
                    "The adapters are merged into the frozen blocks: at alpha 0 this form computes "
                    "the base with them. The form 'sidecar' keeps both apart."
                )
        model.save_pretrained(folder)
