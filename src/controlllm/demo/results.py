"""What the demo found: rows of a table, curves, forms; printed and kept as JSON."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from controlllm.common.storage.files import write_json
from controlllm.demo.domains import NEW, OLD
from controlllm.evaluate import DialCurve, DialPoint, format_table

Cell = str | int | float | None

__all__ = ["FormRow", "Outcome", "Results", "Row"]


@dataclass(frozen=True)
class Row:
    """One model, measured on the held-out sets; losses in nats per token.

    Attributes:
        method: how it learned.
        setting: where its dial stands.
        old_loss: loss on the old domain.
        new_loss: loss on the new domain.
        forgetting: rise of the old domain's loss over the base's.
        gain: fall of the new domain's loss below the base's.
        kl: KL(base || model) on the old domain.
        trained_parameters: how many numbers were trained.
        seconds: wall time of the training call.
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
    """One exported form, reloaded and measured.

    Attributes:
        form: sidecar, full or collapsed.
        megabytes: on disk, tokenizer and card included.
        old_loss: loss on the old domain.
        new_loss: loss on the new domain.
        texts: what it writes after each prompt, greedily.
    """

    form: str
    megabytes: float
    old_loss: float
    new_loss: float
    texts: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """One method, trained and measured.

    Attributes:
        title: its name in table and picture.
        dial: what its dial turns.
        curve: every measured setting of its dial.
        trained_parameters: how many numbers were trained.
        seconds: wall time of the training call.
    """

    title: str
    dial: str
    curve: DialCurve
    trained_parameters: int
    seconds: float

    @property
    def trained(self) -> DialPoint:
        """The model as it was trained."""
        return next((p for p in self.curve.points if p.alpha is None), self.curve.points[-1])

    def rows(self) -> list[Row]:
        """As it was trained, and with its dial at the best setting within the budget."""
        calibrated = f"{self.dial} {self.curve.chosen.label}"
        return [
            self._row(self.title, "as trained", self.trained),
            self._row(f"{self.title}, calibrated", calibrated, self.curve.chosen),
        ]

    def _row(self, method: str, setting: str, point: DialPoint) -> Row:
        old, new = point.retain[OLD], point.learn[NEW]
        return Row(
            method=method,
            setting=setting,
            old_loss=old.loss,
            new_loss=new.loss,
            forgetting=old.forgetting,
            gain=new.gain,
            kl=old.kl,
            trained_parameters=self.trained_parameters,
            seconds=self.seconds,
        )


@dataclass
class Results:
    """Everything found so far; grows method by method.

    Attributes:
        environment: machine, versions and settings.
        outcomes: the methods, in the order they ran.
        forms: the exported forms.
        seconds: wall time of the whole demo, once it has ended.
    """

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
        cells: list[list[Cell]] = [
            [
                row.method,
                row.setting,
                row.old_loss,
                row.new_loss,
                f"{row.forgetting:+.3f}",
                f"{row.gain:+.3f}",
                row.trained_parameters,
                round(row.seconds),
            ]
            for row in self.rows()
        ]
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
            },
        )
