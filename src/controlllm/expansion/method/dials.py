"""What a dial makes of alpha: for all rows, row by row, token by token.

| a part's dial | its alpha |
|---|---|
| None | as trained: the constant, or what the gate says |
| a number | in the place of a constant; times a token's gate |
| a tensor (B,) or (B, T) | the same for each row of the forward pass, or each token; NaN is None |
| a function of x (B, T, D) | what it answers at each forward pass, broadcastable to (B, T, 1) |

Shapes: B rows, T tokens, D hidden width.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor

from controlllm.common.errors import ConfigError, ModelError

__all__ = [
    "PartDial",
    "base_where_zero",
    "checked_alphas",
    "dial_at",
    "is_number",
    "is_zero",
    "mean_alpha",
    "turned",
]

PartDial = float | Tensor | Callable[[Tensor], Tensor] | None
"""What a block or an end holds as its `dial`."""


def is_number(dial: object) -> TypeGuard[float]:
    """Whether a dial is one number for all rows."""
    return isinstance(dial, int | float)


def is_zero(dial: object) -> bool:
    """Whether a dial says that all rows are the base's."""
    return is_number(dial) and dial == 0


def checked_alphas(alpha: Tensor) -> Tensor:
    """One alpha per row (B,) or per token (B, T): a copy as float32 (ConfigError: no such thing).

    A copy, so that what is checked here stays what it is.
    """
    if alpha.dim() not in (1, 2) or not alpha.numel() or alpha.is_complex():
        raise ConfigError(
            f"alpha is a tensor of shape {tuple(alpha.shape)} and type {alpha.dtype}; allowed: "
            "numbers of shape (rows,) or (rows, tokens)."
        )
    values = alpha.detach().to(torch.float32, copy=True)
    wrong = ~(values.isnan() | ((values >= 0) & (values <= 1)))
    if wrong.any():
        raise ConfigError(
            f"alpha of row {int(wrong.nonzero()[0, 0])} is {values[wrong][0].item():g}; allowed: a "
            "number from 0 (the base) to 1 (the expanded branch), or NaN (as trained)."
        )
    return values


def dial_at(dial: PartDial, x: Tensor, kept: Any = None) -> float | Tensor | None:
    """A part's dial for one forward pass: a number, None, or alphas that broadcast to (B, T, 1).

    Args:
        dial: what the part holds.
        x: what it works on (B, T, ...).
        kept: `logits_to_keep` of the forward pass, for a part that sees those tokens only.

    Raises:
        ModelError: the alphas do not fit the rows or the tokens.
    """
    if dial is None or isinstance(dial, int | float):
        return dial
    if x.dim() != 3:
        raise ModelError(
            f"alpha is set per row, but this part of the model is asked without rows (shape "
            f"{tuple(x.shape)}), as for weights joined at one alpha: set_alpha(a number) first."
        )
    if not isinstance(dial, Tensor):
        return dial(x).to(x.device)
    rows, tokens = x.shape[:2]
    if dial.shape[0] != rows:
        raise ModelError(
            f"alpha has {dial.shape[0]} rows, the batch {rows}: set_alpha takes one per row of the "
            "forward passes to come (beams and further answers are rows of their own)."
        )
    alphas = dial.to(x.device)
    if alphas.dim() == 1:
        return alphas[:, None, None]
    if kept is not None and tokens != alphas.shape[1]:
        alphas = alphas[:, slice(-kept, None) if isinstance(kept, int) else kept]
    if alphas.shape[1] != tokens:
        raise ModelError(
            f"alpha has {alphas.shape[1]} tokens, the forward pass {tokens}: set_alpha takes one "
            "per token of each forward pass, or one per row."
        )
    return alphas[..., None]


def turned(gate: Tensor, dial: float | Tensor | None, replaces: bool) -> Tensor:
    """The alpha of a gate under a dial, broadcastable to (B, T, 1).

    Args:
        gate: what the gate says.
        dial: from `dial_at`.
        replaces: whether the dial takes the gate's place; else it multiplies it.
    """
    if dial is None:
        return gate
    if not isinstance(dial, Tensor):
        return torch.full_like(gate, dial) if replaces else dial * gate
    return torch.where(dial.isnan(), gate, dial if replaces else dial * gate)


def base_where_zero(dial: float | Tensor | None, pretrained: Tensor, merged: Tensor) -> Tensor:
    """The merged state (B, T, D), but the pretrained one, untouched, in rows that stand at 0.

    Selected, not multiplied: 0 times an infinite number would be none.
    """
    return torch.where(dial == 0, pretrained, merged) if isinstance(dial, Tensor) else merged


def mean_alpha(dial: PartDial, gate: float | None, replaces: bool) -> float | None:
    """Mean alpha under a dial where the gate's mean is known; None where it cannot be told."""
    if dial is None:
        return gate
    if is_number(dial):
        if replaces or dial == 0:
            return dial
        return None if gate is None else dial * gate
    if not isinstance(dial, Tensor) or gate is None:
        return None
    return turned(torch.full((1,), gate, device=dial.device), dial, replaces).mean().item()
