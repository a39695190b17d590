"""The matrix R of a sequence: what each stage can do of each task, with a row for the base.

R[i, j] is the negative loss of stage i on task j, in nats per token, so that more is better and the
usual formulas hold. Stage 0 is the base, stage j the one that learned task j; T is the last.

| number | formula | source |
|---|---|---|
| ACC | mean over j of R[T, j] | Lopez-Paz and Ranzato 2017, arXiv 1706.08840 |
| BWT | mean over j < T of R[T, j] - R[j, j] | the same |
| FWT | mean over j > 1 of R[j-1, j] - R[0, j] | the same; the base in the place of random weights |
| F | mean over j < T of max over 0 < i < T of R[i, j] - R[T, j] | Chaudhry et al. 2018 |
| intransigence | mean over j of R*[j] - R[j, j], R* of a model that learned all | the same |

(Chaudhry et al. 2018 is arXiv 1801.10112.)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from controlllm.common.errors import ConfigError
from controlllm.evaluate.sequence.documents import DocumentLosses, rise
from controlllm.evaluate.statistics import Difference, mean_difference
from controlllm.expansion.files.records import BASE

__all__ = ["SequenceMatrix"]


@dataclass(frozen=True)
class SequenceMatrix:
    """Losses of the base and of each stage on each task.

    Attributes:
        losses: by stage (the base first, then a stage for each task, in their order), then by task.
        joint: by task, of a model that learned all tasks at once; None = not known.
    """

    losses: Mapping[str, Mapping[str, DocumentLosses]]
    joint: Mapping[str, DocumentLosses] | None = None

    def __post_init__(self) -> None:
        """Check that there is a row for the base and for each task (ConfigError)."""
        stages, tasks = [*self.losses], self.tasks
        if stages != [BASE, *tasks]:
            raise ConfigError(
                f"a matrix needs a row for the base and one for each of the tasks {tasks}, in "
                f"their order; it has {stages}."
            )
        for name, row in [*self.losses.items(), ("joint", self.joint or self.losses[BASE])]:
            if [*row] != tasks:
                raise ConfigError(f"the row {name} has the tasks {[*row]}, the base {tasks}.")

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks, in the order in which they were learned."""
        return [*self.losses[BASE]]

    @property
    def last(self) -> str:
        """The last stage."""
        return self.tasks[-1]

    def loss(self, stage: str, task: str) -> float:
        """Nats per token."""
        return self.losses[stage][task].loss

    @property
    def accuracy(self) -> float:
        """ACC: the mean of the last row of R, so the negative mean loss in the end."""
        return -sum(self.loss(self.last, task) for task in self.tasks) / len(self.tasks)

    @property
    def backward_transfer(self) -> Difference | None:
        """BWT: what later stages did to earlier tasks (below 0: they took); None of one task."""
        return self._mean([self._better(task, self.last, task) for task in self.tasks[:-1]])

    @property
    def forward_transfer(self) -> Difference | None:
        """FWT: what earlier stages did for a task before it was learned; None of one task."""
        pairs = zip(self.tasks, self.tasks[1:], strict=False)
        return self._mean([self._better(BASE, before, task) for before, task in pairs])

    @property
    def forgetting(self) -> Difference | None:
        """F: how far each earlier task fell from the best that any stage before the last had.

        Never below what BWT took; None of one task.
        """
        return self._mean([self._better(self.last, self._best(t), t) for t in self.tasks[:-1]])

    @property
    def intransigence(self) -> Difference | None:
        """How much less each stage learned of its task than `joint`; None where that is unknown."""
        if self.joint is None:
            return None
        return self._mean([rise(self.joint[task], self.losses[task][task]) for task in self.tasks])

    def _best(self, task: str) -> str:
        """The stage before the last that was best at a task; one that diverged is worst."""
        losses = {stage: self.loss(stage, task) for stage in self.tasks[:-1]}
        return min(losses, key=lambda stage: (math.isnan(losses[stage]), losses[stage]))

    def _better(self, first: str, second: str, task: str) -> Difference:
        """How much better the second stage is at a task than the first."""
        return rise(self.losses[second][task], self.losses[first][task])

    @staticmethod
    def _mean(differences: Sequence[Difference]) -> Difference | None:
        return mean_difference(differences) if differences else None
