"""Norms of the expanded branch that let a part of their input through."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["RelaxedNorm", "norms_of"]


def norms_of(branch: nn.Module) -> list[nn.Module]:
    """The norms that stand directly in a decoder block."""
    return [one for one in branch.children() if "norm" in type(one).__name__.lower()]


class RelaxedNorm:
    """Replaces norm(x) inside the expanded branch by w x + (1 - w) norm(x).

    Source: docs/method.md §4.

    Args:
        weight: w, or "dynamic" for clamp(2 alpha - 1, 0, 1).
        alpha: tells alpha as it is now, of states (B, T, D): a number, or a tensor that broadcasts
            to (B, T, 1).
    """

    def __init__(self, weight: float | str, alpha: Callable[[Tensor], float | Tensor]) -> None:
        self.weight = weight
        self.alpha = alpha

    def attach(self, branch: nn.Module) -> None:
        """Hook the norms that stand directly in the expanded branch."""
        for module in norms_of(branch):
            module.register_forward_hook(self.relax)

    def relax(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The hook: blend the norm's input into its output."""
        if self.weight != "dynamic":
            return torch.lerp(output, args[0], float(self.weight))
        alpha = self.alpha(args[0])
        if isinstance(alpha, Tensor):
            return torch.lerp(output, args[0], (2 * alpha - 1).clamp(0, 1).to(output.dtype))
        return torch.lerp(output, args[0], min(max(2 * alpha - 1, 0.0), 1.0))
