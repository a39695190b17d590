"""An alpha for each expanded block and one for the ends, in ratios that are searched.

After training: from equal ratios one at a time is halved or doubled, then changed by the root of
that, where this learns more at the largest common factor that a budget on own text allows. That
factor is the dial.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from benchmarks.study import trial
from benchmarks.study.cells import within

from controlllm.data import Batch
from controlllm.evaluate.forgetting.dial import Dial
from controlllm.evaluate.forgetting.retention import measure_settings
from controlllm.expansion.method.plan import ENDS

__all__ = ["Trial"]

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
        ratios = Search(dial, chosen, self.budget).run()
        model: Any = dial.model

        def turn(factor: float | None) -> None:
            model.set_alpha(None if factor is None else scaled(ratios, factor))

        return Dial(model, turn, dial.reference, "factor of alphas by part")


class Search:
    """Ratios of the parts' alphas."""

    def __init__(self, dial: Dial, chosen: Mapping[str, Sequence[Batch]], budget: float) -> None:
        self.dial, self.chosen, self.budget = dial, chosen, budget
        self.model: Any = dial.model
        self.factor = 0.1

    def run(self) -> dict[int, float]:
        """The ratios that learn most within the budget, of those that were tried."""
        ends = [ENDS] if self.model.expansion.expand_ends else []
        best = dict.fromkeys([*self.model.blocks, *ends], 1.0)
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

    def measured(self, name: str, ratios: Mapping[int, float], factors: Sequence[float]) -> Any:
        """Reports of a set at some factors."""
        turns = [partial(self.model.set_alpha, scaled(ratios, factor)) for factor in factors]
        return measure_settings(self.model, self.chosen[name], turns, self.dial.reference)


def scaled(ratios: Mapping[int, float], factor: float) -> dict[int, float]:
    """Alphas by part."""
    return {part: min(1.0, ratio * factor) for part, ratio in ratios.items()}
