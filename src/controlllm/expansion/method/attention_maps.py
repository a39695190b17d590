"""Attention maps of both branches of a block, for `divergence: attention`."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from controlllm.common.errors import ModelError

__all__ = ["AttentionMaps", "attention_module"]


def attention_module(branch: nn.Module) -> nn.Module:
    """The attention module of a decoder block (ModelError: it has none)."""
    for name, module in branch.named_children():
        if ("attn" in name or "attention" in name) and any(True for _ in module.children()):
            return module
    raise ModelError(
        f"divergence='attention' needs an attention module in {type(branch).__name__}, which has "
        f"none; choose mse, nmse, cosine, dot or none."
    )


class AttentionMaps:
    """Catches the attention maps of both branches of a block as they are computed.

    Raises:
        ModelError: if a block has no attention module, or its implementation does not return maps.
    """

    def __init__(self, pretrained: nn.Module, expanded: nn.Module) -> None:
        self.caught: list[Tensor | None] = [None, None]
        for index, branch in enumerate((pretrained, expanded)):
            attention_module(branch).register_forward_hook(partial(self.catch, index))

    def catch(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook: keep the second output, the attention map."""
        has_map = isinstance(output, tuple) and len(output) > 1
        self.caught[index] = output[1] if has_map else None

    def take(self) -> tuple[Tensor, Tensor]:
        """The two maps (B, H, T, S) of this forward pass; they are not kept."""
        pretrained, expanded = self.caught
        self.caught = [None, None]
        if pretrained is None or expanded is None:
            raise ModelError(
                "divergence='attention' needs attention maps, which only eager attention gives: "
                "load the model with attn_implementation='eager', or choose another divergence."
            )
        return pretrained, expanded
