"""Training for the dial: one alpha per optimizer step, drawn from a range."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from controlllm.expansion import ControlLLMForCausalLM

__all__ = ["AlphaSampler"]


class AlphaSampler:
    """Sets a random alpha for a step and puts the nominal setting back after it.

    Everything outside a step (evaluation, checkpoints, saved models) sees the nominal setting: the
    dial that the config names, or the trained alpha. `interval` is [low, high] to draw from; None =
    never change anything, and then the model need not be an expanded one.
    """

    def __init__(self, model: nn.Module, interval: Sequence[float] | None, seed: int) -> None:
        self.model, self.interval = model, interval
        self.generator = torch.Generator().manual_seed(seed)
        self._nominal = model.expansion.dial if isinstance(model, ControlLLMForCausalLM) else None

    @contextmanager
    def step(self) -> Iterator[float | None]:
        """Inside, the model runs at the alpha drawn for this optimizer step, which is yielded."""
        try:
            yield self.draw()
        finally:
            self.release()

    def draw(self) -> float | None:
        """Draw and set the alpha of the next step; forward *and* backward belong inside."""
        if self.interval is None:
            return None
        low, high = self.interval
        alpha = low + (high - low) * torch.rand((), generator=self.generator).item()
        self._expanded.set_alpha(alpha)
        return alpha

    def release(self) -> None:
        """Put the nominal setting back."""
        if self.interval is None:
            return
        self._expanded.stand_at(self._nominal)

    @property
    def _expanded(self) -> ControlLLMForCausalLM:
        assert isinstance(self.model, ControlLLMForCausalLM)  # RunConfig has checked the method
        return self.model

    def state_dict(self) -> dict[str, Tensor]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the generator, so that the same alphas follow."""
        self.generator.set_state(state["generator"].cpu())
