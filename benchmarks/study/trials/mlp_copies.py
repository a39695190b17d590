"""Copies of the MLP only: e = h + mlp'(norm'(h)) where h = x + attention(x) is the frozen block's.

A copy takes the attention's output from the frozen branch, which has just run on the same input. So
it computes no attention and writes nothing into the KV cache; only the MLP and the norm before it
train and are saved. For blocks as Llama's, whose first norm is the attention's; not with gradient
checkpointing, which would ask for an output twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.study import trial
from torch import nn

from controlllm.expansion.method.attention_maps import attention_module
from controlllm.expansion.method.block import ExpandedBlock
from controlllm.expansion.method.relaxed_norm import norms_of
from controlllm.expansion.surgery import install, parts
from controlllm.expansion.surgery.anatomy import module_name

__all__ = ["Trial"]


class Trial(trial.Trial):
    """Expansions have copies of the MLP only."""

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, also what is loaded has such copies."""
        install.make_block = make_block
        try:
            yield
        finally:
            install.make_block = parts.make_block


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


def make_block(*args: Any, **kwargs: Any) -> ExpandedBlock:
    """An expanded block whose copy has an MLP and a norm of its own, and nothing else."""
    block = parts.make_block(*args, **kwargs)
    own = block.expanded
    attention = module_name(own, attention_module(own))
    norm = module_name(own, norms_of(own)[0])
    setattr(own, attention, SharedAttention(block.pretrained.get_submodule(attention)))
    setattr(own, norm, nn.Identity())  # What it gives, the attention no longer reads.
    return block
