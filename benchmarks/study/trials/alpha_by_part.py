"""An alpha for each expanded block and one for the ends, in ratios that are searched.

Of a model that is not expanded: a weight in the average with the base for each block, and one for
all else. After training, from equal ratios, one at a time is halved or doubled, then changed by the
root of that, where this learns more at the largest common factor that a budget on own text allows.
That factor is the dial.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product

import torch
from benchmarks.study import trial
from benchmarks.study.measuring import within
from torch import Tensor, nn

from controlllm.data import Batch
from controlllm.evaluate.forgetting.dial import Dial
from controlllm.evaluate.forgetting.retention import RetentionReport, measure_settings
from controlllm.expansion import ControlLLMForCausalLM
from controlllm.expansion.method.plan import ENDS

__all__ = ["Trial"]

BLOCK = re.compile(r"\.(\d+)\.")
"""A block's number in the name of a parameter."""
FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Times the last one that fitted: where own text is asked for the next."""


class Trial(trial.Trial):
    """The dial is the common factor of ratios that were searched at a budget.

    Args:
        budget: KL(base || tuned) on own text, in nats per token.
    """

    def __init__(self, budget: float = 0.01) -> None:
        self.budget = budget

    def dial(self, dial: Dial, chosen: Mapping[str, Sequence[Batch]]) -> Dial:
        """A dial that turns all parts in their ratios."""
        search = Search(dial, chosen, self.budget)
        ratios = search.run()

        def turn(factor: float | None) -> None:
            search.turn(None if factor is None else scaled(ratios, factor))

        return Dial(dial.model, turn, dial.reference, f"factor of {dial.name} by part")


class Search:
    """Ratios of the parts' settings."""

    def __init__(self, dial: Dial, chosen: Mapping[str, Sequence[Batch]], budget: float) -> None:
        self.dial, self.chosen, self.budget = dial, chosen, budget
        self.parts, self.turn = parts_of(dial)
        self.factor = 0.1

    def run(self) -> dict[int, float]:
        """The ratios that learn most within the budget, of those that were tried."""
        best = dict.fromkeys(self.parts, 1.0)
        for _ in range(2):  # The factor finds its place.
            lowest = self.loss(best)
        for step, part in product((2.0, 2**0.5), tuple(best)):
            for by in (1 / step, step):
                tried = best | {part: best[part] * by}
                if (loss := self.loss(tried)) < lowest:
                    best, lowest = tried, loss
                    break
        return best

    def loss(self, ratios: Mapping[int, float]) -> float:
        """Loss on new text at the largest factor within the budget."""
        factors = [self.factor * by for by in FACTORS]
        own = [name for name in self.chosen if name != "new"]
        costs = [[report.kl for report in self.measured(n, ratios, factors)] for n in own]
        self.factor = within(factors, [max(at) for at in zip(*costs, strict=True)], self.budget)
        return self.measured("new", ratios, [self.factor])[0].loss

    def measured(
        self, name: str, ratios: Mapping[int, float], factors: Sequence[float]
    ) -> list[RetentionReport]:
        """Reports of a set at some factors."""
        turns = [partial(self.turn, scaled(ratios, factor)) for factor in factors]
        return measure_settings(self.dial.model, self.chosen[name], turns, self.dial.reference)


Turn = Callable[[Mapping[int, float] | None], None]


def parts_of(dial: Dial) -> tuple[list[int], Turn]:
    """The parts of a model, by their blocks and `ENDS`, and what sets each; None = as trained."""
    model = dial.model
    if isinstance(model, ControlLLMForCausalLM):
        ends = [ENDS] if model.expansion.expand_ends else []
        return [*model.blocks, *ends], model.set_alpha
    dial.turn(0)
    base = weights(model)
    dial.turn(None)
    tuned = weights(model)
    block_of = {name: int(at[1]) if (at := BLOCK.search(name)) else ENDS for name in tuned}

    @torch.no_grad()
    def turn(settings: Mapping[int, float] | None) -> None:
        for name, target in model.named_parameters():
            setting = 1.0 if settings is None else settings[block_of[name]]
            target.copy_(torch.lerp(base[name], tuned[name], setting))

    return sorted(set(block_of.values())), turn


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a model's parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def scaled(ratios: Mapping[int, float], factor: float) -> dict[int, float]:
    """Alphas by part."""
    return {part: min(1.0, ratio * factor) for part, ratio in ratios.items()}
