"""Several sidecars at one place of a model, around one frozen part that is held once.

    out = p + sum_k (m_k - p)

m_k is what sidecar k alone would give; where one alone is on, that comes out, bit for bit, and
where none is, p. What is off for all rows does not run.

Shapes: B rows, T tokens, D hidden width.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from controlllm.common.errors import ModelError
from controlllm.common.forwarding import Forwarding
from controlllm.expansion.method.block import ExpandedBlock, first
from controlllm.expansion.method.dials import PartDial, dial_at, is_zero
from controlllm.expansion.method.ends import ExpandedEnd
from controlllm.expansion.method.slots import Slots
from controlllm.expansion.method.state import AlignmentState

__all__ = [
    "SharedBlock",
    "SharedEnd",
    "SharedPart",
    "SharedTable",
    "blend",
    "place_name",
    "stand_alone",
]


def blend(pretrained: Tensor, parts: Iterable[tuple[Tensor, float | Tensor | None]]) -> Tensor:
    """Put together what each sidecar alone would give.

    Args:
        pretrained: p (B, T, D).
        parts: m_k (B, T, D) of each, and its dial in this forward pass (`dial_at`), not 0 for all.
    """
    total, begun = pretrained, torch.zeros((), dtype=torch.bool, device=pretrained.device)
    for merged, dial in parts:
        on = dial != 0 if isinstance(dial, Tensor) else ~torch.zeros_like(begun)
        total = torch.where(on, torch.where(begun, total + (merged - pretrained), merged), total)
        begun = begun | on
    return total


def place_name(at: int) -> str:
    """What the module of a sidecar is called, by its place among those that stand there.

    No number by itself: vLLM looks for that of a layer in the name of a module.
    """
    return f"at{at}"


def stand_alone(part: nn.Module) -> None:
    """Let a part that stood beside others hold the frozen part as its own submodule again."""
    if "pretrained" in vars(part):
        part.add_module("pretrained", vars(part).pop("pretrained"))


class SharedPart(Forwarding):
    """A frozen part of a model, and the parts that several sidecars have in its place.

    Attributes it does not have are the frozen part's.

    Args:
        parts: one of each sidecar; all have the same frozen part and the same state.
    """

    forwards_to = "pretrained"

    def __init__(self, parts: Sequence[ExpandedBlock | ExpandedEnd]) -> None:
        super().__init__()
        self.pretrained = parts[0].pretrained
        self.sidecars = nn.ModuleDict({place_name(at): part for at, part in enumerate(parts)})
        self.state: AlignmentState = parts[0].state
        self.share()

    def share(self) -> None:
        """Let all parts have the frozen part that stands here now.

        They hold no submodule of that name, so that its weights have one name, and are saved once.
        """
        for part in self.parts:
            part._modules.pop("pretrained", None)
            part.__dict__["pretrained"] = self.pretrained

    @property
    def parts(self) -> list[Any]:
        """The parts of its sidecars."""
        return [*self.sidecars.values()]

    @property
    def dial(self) -> PartDial:
        """Each sidecar's part has its own (ModelError)."""
        raise ModelError(
            "Several sidecars stand at this place of the model, each with a dial of its own: load "
            "the one that is meant by load_sidecar(base, folder)."
        )

    @property
    def on(self) -> list[Any]:
        """The parts that are not off for all rows."""
        if not self.state.enabled:
            return []
        return [part for part in self.parts if not is_zero(part.dial)]


class SharedBlock(SharedPart):
    """A decoder block with copies of several sidecars, each with its own slot in the KV cache."""

    @property
    def slots(self) -> Slots:
        """Which slots of the KV cache the block writes now, and which branch each."""
        layer = self.parts[0].layer
        if len(self.on) == 1:
            return self.on[0].slots
        return frozenset({(layer, layer), *((block.slot, block.slot) for block in self.on)})

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the block and what is on beside it; all else that the block returns is kept."""
        on = self.on
        if len(on) == 1:
            return on[0](hidden_states, *args, **kwargs)
        output = self.pretrained(hidden_states, *args, **kwargs)
        merged = blend(
            first(output),
            (
                (
                    first(block.beside(output, hidden_states, *args, **kwargs)),
                    dial_at(block.dial, hidden_states),
                )
                for block in on
            ),
        )
        return (merged, *output[1:]) if isinstance(output, tuple) else merged


class SharedEnd(SharedPart):
    """An end of the model with copies of several sidecars."""

    def forward(self, x: Tensor) -> Tensor:
        """The joined states of token ids (B, T) or states (B, T, D)."""
        on = self.on
        if len(on) == 1:
            return on[0](x)
        pretrained = self.pretrained(x)
        return blend(pretrained, ((end(x), end.dial_of(pretrained)) for end in on))


class SharedTable(SharedEnd):
    """An embedding or a head: linear, so that joined weights give the joined outputs."""

    @property
    def weight(self) -> Tensor:
        """The joined table (V, D), at one alpha per sidecar (ModelError: there is one per row)."""
        return blend(self.pretrained.weight, ((end.weight, None) for end in self.on))  # type: ignore[arg-type]

    @property
    def bias(self) -> Tensor | None:
        """The joined bias (V,)."""
        if self.pretrained.bias is None:
            return None
        return blend(self.pretrained.bias, ((end.bias, None) for end in self.on))  # type: ignore[arg-type]
