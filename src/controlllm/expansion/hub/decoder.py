"""The blocks of a decoder, whether it is expanded or not."""

from torch import nn

from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.surgery.anatomy import examine
from controlllm.expansion.surgery.install import expanded_list

__all__ = ["decoder_blocks"]


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder's blocks, in order, of a model that is expanded or not.

    Raises:
        ModelError: they cannot be found.
    """
    if isinstance(model, ControlLLMForCausalLM):
        return expanded_list(model.base, model._expansion)
    return examine(model).layers
