"""What the demo found: rows of a table, curves, forms; printed and kept as JSON."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from controlllm.common.storage.files import write_json
from controlllm.demo.domains import NEW, OLD
from controlllm.evaluate import DialCurve, DialPoint, format_table

Cell = str | int | float | None

__all__ = ["ON_OLD", "ON_OWN", "FormRow", "Outcome", "Results", "Row"]


@dataclass(frozen=True)
class Row:
    """One model, measured on the held-out sets of both domains; losses in nats per token.

    `forgetting` is the rise of the old domain's loss over the base's, `gain` the fall of the new
    one's below it, `kl` KL(base || model) on the old domain, `seconds` the time of the training.
    """

    method: str
    setting: str
    old_loss: float
    new_loss: float
    forgetting: float
    gain: float
    kl: float
    trained_parameters: int
    seconds: float


@dataclass(frozen=True)
class FormRow:
    """One exported form, reloaded and measured (nats per token); on disk with tokenizer and card.

    `texts` is what it writes after each prompt, greedily.
    """

    form: str
    megabytes: float
    old_loss: float
    new_loss: float
    texts: dict[str, str]


ON_OLD, ON_OWN = "calibrated on old text", "calibrated on own text"
"""How a setting was chosen: on other text of the old domain, or on what the base wrote."""


@dataclass(frozen=True)
class Outcome:
    """One method, trained in so many seconds, and measured at each setting of what `dial` turns.

    `curve` is measured on what is reported, and chooses nothing; `choices` are the curves that
    chose, by `ON_OLD` and `ON_OWN`.
    """

    title: str
    dial: str
    curve: DialCurve
    choices: dict[str, DialCurve]
    trained_parameters: int
    seconds: float

    @property
    def trained(self) -> DialPoint:
        """The model as it was trained."""
        return next((p for p in self.curve.points if p.alpha is None), self.curve.points[-1])

    def chosen(self, how: str) -> DialPoint:
        """The setting that gained most within the budget where it was chosen, as reported."""
        alpha = self.choices[how].chosen.alpha
        return next(point for point in self.curve.points if point.alpha == alpha)

    def rows(self) -> list[Row]:
        """As it was trained, and with its dial at the settings that were chosen."""
        cost = self.trained_parameters, self.seconds
        told = [(self.title, "as trained", self.trained)]
        for how in self.choices:
            point = self.chosen(how)
            told.append((f"{self.title}, {how}", f"{self.dial} {point.label}", point))
        rows = []
        for method, setting, point in told:
            old, new = point.retain[OLD], point.learn[NEW]
            measured = (old.loss, new.loss, old.forgetting, new.gain, old.kl)
            rows.append(Row(method, setting, *measured, *cost))
        return rows


@dataclass
class Results:
    """Everything found so far; grows method by method. `seconds` is set once the demo has ended."""

    environment: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)
    forms: list[FormRow] = field(default_factory=list)
    seconds: float | None = None

    def rows(self) -> list[Row]:
        """The table: the base, then every method as trained and calibrated."""
        if not self.outcomes:
            return []
        point = self.outcomes[0].trained
        old, new = point.retain[OLD].base_loss, point.learn[NEW].base_loss
        base = Row("base", "", old, new, 0.0, 0.0, 0.0, 0, 0.0)
        return [base, *(row for outcome in self.outcomes for row in outcome.rows())]

    def table(self) -> str:
        """The rows for people."""
        headers = [
            "model", "dial", "old-domain loss", "new-domain loss", "forgetting", "gain",
            "trained parameters", "seconds",
        ]  # fmt: skip
        cells: list[list[Cell]] = []
        for row in self.rows():
            changes = (f"{row.forgetting:+.3f}", f"{row.gain:+.3f}")
            cost = (row.trained_parameters, round(row.seconds))
            cells.append([row.method, row.setting, row.old_loss, row.new_loss, *changes, *cost])
        return format_table(headers, cells)

    def forms_table(self) -> str:
        """The exported forms for people."""
        headers = ["form", "MB on disk", "old-domain loss", "new-domain loss"]
        cells: list[list[Cell]] = [
            [row.form, f"{row.megabytes:.1f}", row.old_loss, row.new_loss] for row in self.forms
        ]
        return format_table(headers, cells)

    def save(self, path: Path) -> None:
        """Write everything as JSON, atomically."""
        write_json(
            path,
            {
                "environment": self.environment,
                "seconds": self.seconds,
                "rows": [asdict(row) for row in self.rows()],
                "forms": [asdict(form) for form in self.forms],
                "curves": {outcome.title: outcome.curve.to_dict() for outcome in self.outcomes},
                "choices": {
                    outcome.title: {how: curve.to_dict() for how, curve in outcome.choices.items()}
                    for outcome in self.outcomes
                },
            },
        )
