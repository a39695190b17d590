"""What was written for the questions of a run, how long it may take, and its numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from controlllm.evaluate.texts import Compared

__all__ = ["Answer", "Answers", "Pace", "SetReport", "as_values"]


@dataclass(frozen=True)
class Answer:
    """What a model wrote for one row, and what it says of the right answer.

    Attributes:
        text: the text.
        is_cut: whether it was ended by `max_new_tokens`.
        hits: tokens of the right answer that it finds likeliest, teacher-forced.
        targets: tokens of the right answer; 0 where no metric asks for them.
        labels: the probability of each label; empty where no metric asks for them.
    """

    text: str
    is_cut: bool
    hits: int = 0
    targets: int = 0
    labels: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, values: Any) -> "Answer":
        """An answer from plain values.

        Raises:
            TypeError, ValueError, KeyError: they are no answer.
        """
        labels = {str(label): float(p) for label, p in dict(values["labels"]).items()}
        numbers = int(values["hits"]), int(values["targets"])
        return cls(str(values["text"]), bool(values["is_cut"]), *numbers, labels)


@dataclass(frozen=True)
class SetReport:
    """The numbers of one set.

    Attributes:
        rows: how many rows were scored.
        compared: each number of base and model.
    """

    rows: int
    compared: tuple[Compared, ...]


Answers = Mapping[str, Sequence[Answer]]
"""By the name of their set: those of its first rows."""


class Pace:
    """How long writing may take, and what is told of it; the same on all processes.

    Args:
        seconds: since the evaluation began, of the slowest process. Collective.
        bound: seconds that it may take; None = any.
        on_token: called after each token.
        on_batch: told rows done, and all rows, after each batch.
    """

    def __init__(
        self,
        seconds: Callable[[], float],
        bound: float | None = None,
        on_token: Callable[[], object] = lambda: None,
        on_batch: Callable[[int, int], object] = lambda done, rows: None,
    ) -> None:
        self.seconds, self.bound = seconds, bound
        self.on_token, self.on_batch = on_token, on_batch

    def share(self, sets: int) -> float:
        """The second at which the next of `sets` remaining sets must end."""
        if self.bound is None:
            return math.inf
        now = self.seconds()
        return now + max(self.bound - now, 0) / sets


def as_values(answers: Answers) -> dict[str, list[dict[str, Any]]]:
    """Answers as plain values, for a file."""
    return {name: [asdict(one) for one in rows] for name, rows in answers.items()}
