"""Copies of the MLP only: e = h + mlp'(norm'(h)) where h = x + attention(x) is the frozen block's.

A copy takes the attention's output from the frozen branch, which has just run on the same input. So
it computes no attention and writes nothing into the KV cache; only the MLP and the norm before it
train and are saved. For blocks as Llama's, whose first norm is the attention's; not with gradient
checkpointing, which would ask for an output twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks.study import trial
from torch import nn

from controlllm.expansion.method.attention_maps import attention_module
from controlllm.expansion.method.block import ConcatBlock
from controlllm.expansion.method.relaxed_norm import norms_of
from controlllm.expansion.surgery import parts
from controlllm.expansion.surgery.anatomy import module_name

__all__ = ["Trial"]


class Trial(trial.Trial):
    """Expansions have copies of the MLP only."""

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, also what is loaded has such copies."""
        with patch.object(parts, "ConcatBlock", MlpBlock):
            yield


class MlpBlock(ConcatBlock):
    """A block whose copy has an MLP and the norm before it, and nothing else of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        attention = module_name(self.expanded, attention_module(self.expanded))
        norm = module_name(self.expanded, norms_of(self.expanded)[0])
        shared = SharedAttention(self.pretrained.get_submodule(attention))
        setattr(self.expanded, attention, shared)
        setattr(self.expanded, norm, nn.Identity())  # What it gives is no longer read.

    @property
    def copy_alone(self) -> bool:
        """Never: the copy needs what the frozen attention gives."""
        return False


class SharedAttention(nn.Module):
    """Stands where a copy's attention was: gives what the frozen one gave last, once."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.given: Any = None
        frozen.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, output: Any) -> None:
        """The hook on the frozen attention."""
        self.given = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The frozen attention's output, whatever is asked."""
        given, self.given = self.given, None
        return given
