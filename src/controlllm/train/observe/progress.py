"""How far a run is: counters, history and the averages since the last record. Plain values only."""

from dataclasses import asdict, dataclass, field
from typing import Any

from controlllm.train.observe import metrics as names
from controlllm.train.observe.retention import Best
from controlllm.train.step.losses import StepReport

__all__ = ["Progress", "Window"]


@dataclass
class Window:
    """Sums over the steps since the last training record."""

    steps: int = 0  # optimizer steps in the window
    tokens: int = 0  # real tokens in the window
    positions: int = 0  # tokens computed in the window, padding included
    seconds: float = 0.0  # time spent in training steps, without evaluation and saving
    phases: dict[str, float] = field(default_factory=dict)
    """Of them, seconds of each phase on this process (`timing`)."""
    model_flops: float = 0.0  # FLOPs that this process needed (`flops`)
    hardware_flops: float = 0.0  # FLOPs that it computed
    sums: dict[str, float] = field(default_factory=dict)
    """Sum over the steps of each averaged metric."""

    def add(self, report: StepReport, grad_norm: float, seconds: float) -> None:
        """Add one optimizer step."""
        values = {f"train/{name}": loss.item() for name, loss in report.losses.items()}
        values[names.LOSS] = report.total.item()
        values[names.GRAD_NORM] = grad_norm
        for layer, value in report.divergence.items():
            values[names.DIVERGENCE_LAYER.format(layer)] = value.item()
        for name, number in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + number
        self.steps += 1
        self.tokens += report.tokens
        self.positions += report.positions
        self.seconds += seconds

    def means(self) -> dict[str, float]:
        """The averaged metrics and the throughput."""
        metrics = {name: total / self.steps for name, total in self.sums.items()}
        metrics[names.TOKENS_PER_SECOND] = self.tokens / max(self.seconds, 1e-9)
        metrics[names.PACKING_EFFICIENCY] = self.tokens / max(self.positions, 1)
        return metrics


@dataclass
class Progress:
    """What a run has done so far."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # real tokens trained on
    seconds: float = 0.0  # time spent in training steps, summed over resumes
    forgetting: dict[str, float] = field(default_factory=dict)
    """Largest forgetting of the retain sets of each stage at the last evaluation."""
    best: Best | None = None  # the best step so far
    window: Window = field(default_factory=Window)  # averages since the last record
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per record: `step` and its metrics."""

    def to_dict(self) -> dict[str, Any]:
        """All but the history, which a checkpoint keeps by itself."""
        values = asdict(self)
        del values["history"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], history: list[dict[str, Any]]) -> "Progress":
        """What `to_dict` and a history say."""
        best = Best(**values["best"]) if values["best"] else None
        window = Window(**values["window"])
        return cls(**{**values, "best": best, "window": window, "history": history})
