"""The dial: reading and setting alpha, and switching the expansion off."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from controlllm.common.adapters import has_adapters, switch_adapters, without_adapters
from controlllm.common.errors import ConfigError
from controlllm.expansion.method.block import ConcatBlock, ExpandedBlock
from controlllm.expansion.method.dials import checked_alphas
from controlllm.expansion.method.ends import ExpandedEnd
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.plan import ENDS, check_layers
from controlllm.expansion.method.state import AlignmentState
from controlllm.expansion.surgery.install import Expansion

__all__ = ["Alpha", "Dial"]

Alpha = float | Tensor | Mapping[int, float | Tensor | None] | None
"""What a dial is turned to: as trained (None), for all rows, for each row, or by layer."""


class Dial:
    """What an expanded model offers about its alphas; mixed into the model's class."""

    config: Any
    _expansion: Expansion

    @property
    def expansion(self) -> ExpansionConfig:
        """How the base was expanded (a fresh object; the dial is changed by `set_alpha`)."""
        return self.config.expansion_config()

    @property
    def blocks(self) -> dict[int, ExpandedBlock]:
        """The expanded blocks by layer."""
        return self._expansion.blocks

    def set_alpha(self, alpha: Alpha) -> None:
        """Turn the dial: the weight of the expanded branch, from 0 (the base, bit for bit) to 1.

        It takes the place of a constant alpha, and multiplies what a token gate says: at 1 a gate
        is as it was trained. Adapters (PEFT) on frozen blocks are not weighted: they are off at 0,
        and on elsewhere, for all rows.

        Args:
            alpha: one value for all blocks and ends; or a tensor with one per row (B,) of the
                forward passes to come, or per token (B, T), NaN = as trained; or one of these per
                layer (-1 = the ends; what is not named keeps its own); or {}, where nothing is on:
                the base, as it is of named sidecars; or None, the trained alphas again. Tensors are
                of this process: a model that is saved has the numbers that were set last.

        Raises:
            ConfigError: for a value outside [0, 1], a layer that is not expanded, or rows at 0
                beside others in a model with adapters. The forward pass raises a ModelError for
                a tensor that does not fit its rows.
        """
        self._turn(*self._checked(alpha))

    def stand_at(self, dial: Any) -> None:
        """Turn to exactly this dial, as one is recorded: what it does not name is as trained.

        (`set_alpha` lays a dial by layer over what stands.)

        Args:
            dial: what `set_alpha` takes.

        Raises:
            ConfigError: as there. Nothing is changed then.
        """
        self.set_alpha(dial)
        if isinstance(dial, Mapping):  # It can be had: anew, from the trained alphas.
            names = all(isinstance(key, str) for key in dial)
            self.set_alpha(dict.fromkeys(dial) if names else None)
            self.set_alpha(dial)

    def _checked(self, alpha: Alpha) -> tuple[Alpha, dict[str, Any]]:
        """What parts get, and the config's expansion then (ConfigError); nothing is changed."""
        if isinstance(alpha, Mapping) and not alpha:
            alpha = 0.0
        if isinstance(alpha, Tensor):
            alpha = checked_alphas(alpha)
            self._check_adapters(alpha)
            return alpha, self.config.expansion
        dial: Any = alpha
        if isinstance(alpha, Mapping):
            check_layers(alpha, self._parts_by_layer())
            alpha = {k: checked_alphas(v) if isinstance(v, Tensor) else v for k, v in alpha.items()}
            dial = self._numbers_with(alpha)
        settings = ExpansionConfig.from_dict(self.config.expansion | {"dial": dial})
        return alpha, settings.to_dict()

    def _turn(self, alpha: Alpha, expansion: dict[str, Any]) -> None:
        self.config.expansion = expansion
        self._apply_dial(alpha)

    def _numbers_with(self, alpha: Mapping[int, Any]) -> dict[int, Any]:
        """The config's dial by layer, with the numbers of a new one."""
        before: Any = self.expansion.dial
        if not isinstance(before, dict):
            before = dict.fromkeys(self._parts_by_layer(), before)
        numbers = {k: v for k, v in alpha.items() if not isinstance(v, Tensor)}
        return {k: v for k, v in (before | numbers).items() if v is not None}

    def _check_adapters(self, alpha: Tensor) -> None:
        """Refuse rows of the base beside others where adapters would reach them (ConfigError)."""
        zero = alpha == 0
        if zero.any() and not zero.all() and has_adapters(self._module):
            raise ConfigError(
                "alpha is 0 in some rows and not in others, but this model has adapters (PEFT), "
                "which are on or off for all rows: run the rows at 0 in a batch of their own, or "
                "fold the adapters in (collapse)."
            )

    @property
    def has_gates(self) -> bool:
        """Whether some block decides alpha for each token, which the dial then multiplies."""
        return any(
            isinstance(block, ConcatBlock) and not block.interpolator.constant
            for block in self.blocks.values()
        )

    def _apply_dial(self, alpha: Alpha) -> None:
        if isinstance(alpha, Mapping):
            for layer, value in alpha.items():
                for part in self._parts_by_layer()[layer]:
                    part.dial = value
        else:
            for part in self._expansion.parts():
                part.dial = alpha
        off = bool((alpha == 0).all()) if isinstance(alpha, Tensor) else alpha == 0
        switch_adapters(self._module, on=not off)

    def _parts_by_layer(self) -> dict[int, list[ExpandedBlock | ExpandedEnd]]:
        """What one key of a dial by layer turns."""
        parts: dict[int, list[ExpandedBlock | ExpandedEnd]] = {
            layer: [block] for layer, block in self.blocks.items()
        }
        return parts | ({ENDS: [*self._expansion.ends.values()]} if self._expansion.ends else {})

    def alphas(self) -> dict[int, float]:
        """Mean alpha per layer: dial, constant, or the dial times a token gate's last mean."""
        values = {layer: block.alpha() for layer, block in self.blocks.items()}
        return {layer: value for layer, value in values.items() if value is not None}

    @contextmanager
    def record_alpha(self, gather: Callable[[Any], list[Any]] | None = None) -> Iterator[None]:
        """Measure the mean gate of each block over the forwards inside; the config keeps it.

        Collapsing a token gate needs it: `collapse` uses this mean, times the dial. A constant that
        a dial stands in for has no gate to measure, and at dial 0 there is none, either. Inside one
        another, the outer one measures over all forwards.

        Args:
            gather: gives the values of all processes that measure rows of their own.
        """
        if self._state.alpha_sums is not None:
            yield
            return
        self._state.alpha_sums = {}
        try:
            yield
            sums = self._state.alpha_sums
            own = {layer: (s.item(), n.item()) for layer, (s, n) in sums.items()}
            everyone = [own] if gather is None else gather(own)
            means = {}
            for layer in sorted({layer for sums in everyone for layer in sums}):
                found = [sums[layer] for sums in everyone if layer in sums]
                means[layer] = sum(s for s, _ in found) / max(sum(n for _, n in found), 1)
            if means:
                self.config.expansion["mean_alpha"] = means
        finally:
            self._state.alpha_sums = None

    def unrecorded(self) -> AbstractContextManager[None]:
        """Inside, `record_alpha` does not count."""
        return self._state.holding(alpha_sums=None)

    @contextmanager
    def disable_expansion(self) -> Iterator[None]:
        """Inside, the model is the base: its function bit for bit, and its cost."""
        with self._state.holding(enabled=False), without_adapters(self._module):
            yield

    def disable_adapter(self) -> AbstractContextManager[None]:
        """`disable_expansion` under the name that PEFT's models and loops that use them know."""
        return self.disable_expansion()

    @property
    def _module(self) -> nn.Module:
        """The model that this is mixed into."""
        assert isinstance(self, nn.Module)
        return self

    @property
    def _state(self) -> AlignmentState:
        return self._expansion.state
