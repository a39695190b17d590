"""Interpolators: how the pretrained and the expanded hidden state become one.

An interpolator is a *gate* (where does alpha come from?) times a *mix* (what is done with it?):

| name | gate | mix |
|---|---|---|
| `lerp` | one constant per block | straight line |
| `slerp` | one constant per block | along the arc between the two directions |
| `dlerp` | per token, from [pretrained; expanded] | straight line |
| `dlerpin` | per token, from the block's input | straight line |
| `moe` | per token, top-1 of two experts, straight-through | straight line |
| `prog` | one constant per block | straight line from A·pretrained |
| `proj` | one constant per block | straight line; the divergence compares with A·pretrained |

Shapes: B batch, T tokens, D hidden width. Source: Control LLM (arXiv 2501.10979), section 3;
docs/method.md §3 has the formulas, §10 where the released code differs.
"""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from controlllm.expansion.method.dials import base_where_zero, is_number, turned
from controlllm.expansion.method.registries import INTERPOLATORS

__all__ = ["INTERPOLATORS", "Interpolator"]


class Interpolator(nn.Module, ABC):
    """Joins the outputs of the two branches of a block.

    Subclasses say where alpha comes from (`gate`) and may say how it is used (`mix`) and what the
    divergence loss compares the expanded branch with (`target`). Equal branches must come out
    unchanged, bit for bit, whatever alpha.

    Args:
        hidden_size: D, the width of the hidden state.
        alpha: weight of the expanded branch at the start, in [0, 1].
        train_alpha: whether a constant alpha is trained (token gates always train).
    """

    collapsible = True
    """Whether interpolating *weights* approximates interpolating outputs (for collapse)."""
    constant = False
    """Whether alpha is one number per block, known without any input; a dial then takes its place,
    and otherwise multiplies the gate."""
    trains = True
    """Whether it has parameters that train, whatever `train_alpha`."""
    needs_divergence = False
    """Whether it changes nothing but what the divergence compares (`target`)."""
    last_gate: Tensor | None = None
    """What the gate of the last forward pass said, before any dial; detached."""

    @abstractmethod
    def __init__(self, hidden_size: int, alpha: float = 0.5, train_alpha: bool = False) -> None:
        super().__init__()

    @property
    def straight(self) -> bool:
        """Whether it is (1 - alpha) p + alpha e with an alpha that a dial takes the place of."""
        return self.constant and type(self).mix is Interpolator.mix

    @abstractmethod
    def gate(self, x: Tensor, pretrained: Tensor, expanded: Tensor) -> Tensor:
        """Alpha, broadcastable to (B, T, 1), float32, in [0, 1]."""

    def mix(self, pretrained: Tensor, expanded: Tensor, alpha: Tensor) -> Tensor:
        """The joined hidden state (B, T, D) for a given alpha."""
        return torch.lerp(pretrained, expanded, alpha.to(pretrained.dtype))

    def target(self, pretrained: Tensor) -> Tensor:
        """What the divergence loss holds the expanded branch to (B, T, D)."""
        return pretrained

    def forward(
        self,
        x: Tensor,
        pretrained: Tensor,
        expanded: Tensor,
        dial: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Join the branches.

        Args:
            x: the block's input (B, T, D).
            pretrained: output of the frozen branch (B, T, D).
            expanded: output of the trained branch (B, T, D); taken in the frozen one's type, which
                differs where a half-precision base has its copies trained in float32.
            dial: used instead of a constant alpha; a token's gate is multiplied by it. A tensor
                (from `dial_at`) does so row by row; where it is 0 the pretrained state comes out.

        Returns:
            The joined state (B, T, D), and alpha, broadcastable to (B, T, 1).
        """
        expanded = expanded.to(pretrained.dtype)
        if is_number(dial) and self.constant:
            alpha = torch.full((1,), dial, dtype=torch.float32, device=pretrained.device)
        else:
            gate = self.gate(x, pretrained, expanded)
            self.last_gate = gate.detach()
            alpha = turned(gate, dial, self.constant)
        merged = self.mix(pretrained, expanded, alpha)
        return base_where_zero(dial, pretrained, merged), alpha


def logit(alpha: float) -> float:
    """The logit whose logistic function is `alpha`, exactly so at 0 and 1 (infinite)."""
    if alpha in (0.0, 1.0):
        return math.inf if alpha else -math.inf
    return math.log(alpha / (1.0 - alpha))


class ConstantGate(Interpolator):
    """One alpha per block, stored as a logit of shape (1,)."""

    constant = True
    trains = False

    def __init__(self, hidden_size: int, alpha: float = 0.5, train_alpha: bool = False) -> None:
        super().__init__(hidden_size, alpha, train_alpha)
        self.logit = nn.Parameter(torch.full((1,), logit(alpha)), requires_grad=train_alpha)

    def alpha(self) -> Tensor:
        """The constant, shape (1,), float32."""
        return self.logit.float().sigmoid()

    def gate(self, x: Tensor, pretrained: Tensor, expanded: Tensor) -> Tensor:
        return self.alpha()


class TokenGate(Interpolator):
    """Alpha per token from a linear map of hidden states; it starts at `alpha` for every token."""

    states = 1
    """How many hidden states it reads."""

    def __init__(self, hidden_size: int, alpha: float = 0.5, train_alpha: bool = False) -> None:
        super().__init__(hidden_size, alpha, train_alpha)
        self.weight = nn.Parameter(torch.zeros(1, self.states * hidden_size))
        self.bias = nn.Parameter(torch.full((1,), logit(alpha)))

    def score(self, *states: Tensor) -> Tensor:
        """w·[states] + b per token (B, T, 1); the states are never concatenated in memory."""
        weights = self.weight.to(states[0].dtype).chunk(len(states), dim=-1)
        total = sum(F.linear(h, w).float() for h, w in zip(states, weights, strict=True))
        return total + self.bias.float()


@INTERPOLATORS.register("lerp")
@final
class Lerp(ConstantGate):
    """(1 - alpha) p + alpha e."""


@INTERPOLATORS.register("dlerp")
@final
class DLerp(TokenGate):
    """Lerp with alpha_t = sigmoid(w·[p_t; e_t] + b)."""

    states = 2

    def gate(self, x: Tensor, pretrained: Tensor, expanded: Tensor) -> Tensor:
        return self.score(pretrained, expanded).sigmoid()


@INTERPOLATORS.register("dlerpin")
@final
class DLerpIn(TokenGate):
    """Lerp with alpha_t = sigmoid(w·x_t + b)."""

    def gate(self, x: Tensor, pretrained: Tensor, expanded: Tensor) -> Tensor:
        return self.score(x).sigmoid()


@INTERPOLATORS.register("slerp")
@final
class Slerp(ConstantGate):
    """Along the arc: sin((1-alpha)θ)/sin(θ) p + sin(alpha θ)/sin(θ) e, θ per token, in float32.

    Tokens whose branches are almost parallel take the straight line, token by token; at the switch
    the two agree to about θ² = 1e-6. So do tokens whose branches are almost opposite, between which
    no arc is distinguished.

    Source: Shoemake 1985, and docs/method.md §3.
    """

    min_sine = 1e-3

    def mix(self, pretrained: Tensor, expanded: Tensor, alpha: Tensor) -> Tensor:
        p, e = pretrained.float(), expanded.float()
        unit_p, unit_e = F.normalize(p, dim=-1), F.normalize(e, dim=-1)
        # θ = 2 atan2(|p̂ - ê|, |p̂ + ê|) is exact where acos(p̂·ê) loses all its digits: near 0 and
        # π. With chord/2 = sin(θ/2) and its partner cos(θ/2), sin θ = chord * partner / 2.
        chord2 = (unit_p - unit_e).square().sum(-1, keepdim=True)
        partner2 = (unit_p + unit_e).square().sum(-1, keepdim=True)
        straight = chord2 * partner2 < (2 * self.min_sine) ** 2
        # A square root has an infinite slope at 0: those tokens get a harmless value and are not
        # selected below.
        chord = torch.where(straight, 1.0, chord2).sqrt()
        partner = torch.where(straight, 1.0, partner2).sqrt()
        theta = 2 * torch.atan2(chord, partner)
        arc = (torch.sin((1 - alpha) * theta) * p + torch.sin(alpha * theta) * e) / torch.sin(theta)
        return torch.where(straight, torch.lerp(p, e, alpha), arc).to(pretrained.dtype)


@INTERPOLATORS.register("moe")
@final
class MoE(Interpolator):
    """Top-1 of two experts, gate softmax(W x + b), straight-through: the gate gets task gradient.

    Alpha is 1 for tokens whose expanded expert wins and 0 for the others. Ties go to the expanded
    expert, or it would never be trained.
    """

    collapsible = False

    def __init__(self, hidden_size: int, alpha: float = 0.5, train_alpha: bool = False) -> None:
        super().__init__(hidden_size, alpha, train_alpha)
        self.weight = nn.Parameter(torch.zeros(2, hidden_size))
        self.bias = nn.Parameter(torch.tensor([0.0, logit(alpha)]))

    def gate(self, x: Tensor, pretrained: Tensor, expanded: Tensor) -> Tensor:
        scores = F.linear(x, self.weight.to(x.dtype)).float() + self.bias.float()
        soft = scores.softmax(dim=-1)[..., 1:]
        hard = (soft >= 0.5).float()
        return hard + (soft - soft.detach())


class Projected(ConstantGate):
    """A constant alpha and a trained map A (D, D) that starts as the exact identity."""

    collapsible = False
    trains = True

    def __init__(self, hidden_size: int, alpha: float = 0.5, train_alpha: bool = False) -> None:
        super().__init__(hidden_size, alpha, train_alpha)
        self.projection = nn.Parameter(torch.eye(hidden_size))

    def project(self, pretrained: Tensor) -> Tensor:
        """A p (B, T, D)."""
        return F.linear(pretrained, self.projection.to(pretrained.dtype))


@INTERPOLATORS.register("prog")
@final
class Prog(Projected):
    """(1 - alpha) A p + alpha e, the paper's "Plerp"."""

    def mix(self, pretrained: Tensor, expanded: Tensor, alpha: Tensor) -> Tensor:
        return super().mix(self.project(pretrained), expanded, alpha)


@INTERPOLATORS.register("proj")
@final
class Proj(Projected):
    """Lerp of p and e; the divergence holds e to A p instead of p."""

    needs_divergence = True

    def target(self, pretrained: Tensor) -> Tensor:
        return self.project(pretrained)
