"""The expanded model without its head: what `AutoModel` gives, and serving engines build on."""

from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.expansion.surgery.install import Expansion

__all__ = ["ControlLLMModel"]


class ControlLLMModel(PreTrainedModel):
    """The stack of expanded blocks of a saved model (`full`), embedding and final norm included.

    It is for inference: what trains is `ControlLLMForCausalLM`.

    Attributes:
        expansion: the expanded blocks and ends.
        expansions: those of each sidecar; with one that has no name, the same.
    """

    config_class = ControlLLMConfig
    base_model_prefix = "base"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ControlLLMForCausalLM._no_split_modules
    whole: ClassVar[type[ControlLLMForCausalLM]] = ControlLLMForCausalLM
    """The class of the model with its head."""

    def __init__(self, config: ControlLLMConfig) -> None:
        super().__init__(config)
        model = self.whole(config)
        self.expansion: Expansion = model._expansion
        self.expansions = self._expansions(model)
        self._backbone = model.base.base_model_prefix
        self.add_module(self._backbone, model.base.base_model)
        self.post_init()

    def _expansions(self, model: ControlLLMForCausalLM) -> list[Expansion]:
        return [model._expansion]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's own backbone (without head) does it."""
        return self.get_submodule(self._backbone)(*args, **kwargs)

    def get_decoder(self) -> Any:
        """The base's stack of blocks."""
        backbone: Any = self.get_submodule(self._backbone)
        return backbone.get_decoder() if hasattr(backbone, "get_decoder") else backbone

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        backbone: Any = self.get_submodule(self._backbone)
        return backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        backbone: Any = self.get_submodule(self._backbone)
        backbone.set_input_embeddings(value)
