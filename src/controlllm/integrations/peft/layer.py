"""What stands in the place of a block (or of an end) of the base, one for all adapters.

                    x
                    |-------------------------.
               base_layer (frozen)   controlllm_parts[active adapter]
                    |                         |
                    '----- the part joins ----'

The parts are the blocks and ends that `expand` makes. They know the frozen module but do not hold
it: it is registered once, as PEFT's `base_layer`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from controlllm.common.errors import ModelError
from controlllm.common.forwarding import Forwarding
from controlllm.expansion.method.block import ExpandedBlock
from controlllm.expansion.method.ends import ExpandedEnd
from controlllm.integrations.peft.names import PARTS

__all__ = ["AdaptedBlock", "AdaptedEnd", "AdaptedLayer"]


class KnowsAdapters(Protocol):
    """Knows all adapters of a base, by name."""

    def without(self, name: str) -> list[str]:
        """Forget one; the names of the others, sorted."""


class AdaptedLayer(Forwarding, BaseTunerLayer):
    """A frozen module of the base and the expanded parts that adapters put beside it.

    Attributes it does not have are the frozen module's.
    """

    adapter_layer_names = (PARTS,)
    forwards_to = "base_layer"

    def __init__(self, base_layer: nn.Module, adapters: KnowsAdapters) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.controlllm_parts = nn.ModuleDict()
        self.adapters = adapters
        self.trained: dict[str, frozenset[str]] = {}
        self._active_adapter = []

    def hold(self, name: str, part: ExpandedBlock | ExpandedEnd) -> None:
        """Take in an adapter's part. It lets go of the frozen module, but still knows it."""
        vars(part)["pretrained"] = part._modules.pop("pretrained")
        self.controlllm_parts[name] = part
        self.trained[name] = frozenset(n for n, p in part.named_parameters() if p.requires_grad)

    @property
    def active_part(self) -> Any:
        """The active adapter's part; None where there is none, or adapters are disabled."""
        names = self.active_adapters
        if self.disable_adapters or not names or names[0] not in self.controlllm_parts:
            return None
        return self.controlllm_parts[names[0]]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter the active one.

        Raises:
            ModelError: for more than one: each would want the block's output for itself.
        """
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise ModelError(
                f"Only one Control LLM adapter can be active, got {list(adapter_names)}; blend "
                "them by add_weighted_adapter() first."
            )
        super().set_adapter(adapter_names, inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; if it was active, the first of the others becomes so."""
        if adapter_name in self.controlllm_parts:
            del self.controlllm_parts[adapter_name]
            del self.trained[adapter_name]
        remaining = self.adapters.without(adapter_name)
        if adapter_name in self.active_adapters:
            # The model's adapters count, not this layer's: all layers must come to the same.
            self.set_adapter(remaining[:1])

    def _freeze_non_trainable_peft_weights(
        self, adapter_names: str | Sequence[str] | None = None
    ) -> None:
        """PEFT has let all of an adapter train: freeze what does not (a constant alpha)."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in self.controlllm_parts if names is None else names:
            if name in self.controlllm_parts:
                for key, parameter in self.controlllm_parts[name].named_parameters():
                    if key not in self.trained[name]:
                        parameter.requires_grad_(False)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: Any | None = None
    ) -> None:
        """Move an adapter's part to where the frozen module is."""
        reference = next(self.base_layer.parameters(), None)
        target = device or (None if reference is None or reference.is_meta else reference.device)
        if adapter_name in self.controlllm_parts and target is not None:
            self.controlllm_parts[adapter_name].to(target)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: what was folded into the frozen block could not be taken out again.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "Folding an expanded block into its frozen one cannot be undone; take "
            "merge_and_unload(), which gives the collapsed model."
        )


class AdaptedBlock(AdaptedLayer):
    """A decoder block with an expanded block per adapter."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The frozen block, and the active adapter's beside it."""
        output = self.base_layer(hidden_states, *args, **kwargs)
        part = self.active_part
        return output if part is None else part.beside(output, hidden_states, *args, **kwargs)


class AdaptedEnd(AdaptedLayer):
    """The embedding, the final norm or the LM head, with an expanded end per adapter."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The active adapter's joined end, or the frozen one."""
        part = self.active_part
        return self.base_layer(*args, **kwargs) if part is None else part(*args, **kwargs)

    @property
    def weight(self) -> Any:
        """The joined weight: what loops with fused losses read of a head."""
        return getattr(self.active_part or self.base_layer, "weight")  # noqa: B009  # mypy

    @property
    def bias(self) -> Any:
        """The joined bias."""
        return getattr(self.active_part or self.base_layer, "bias")  # noqa: B009  # mypy
