"""A study as a YAML says it: which cells it has, and in which order they are run."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.study.texts import KEPT, SHIFTS

from controlllm.common.errors import ConfigError
from controlllm.common.registry import check_choice
from controlllm.train.config.config_io import build, read_yaml

__all__ = ["Arm", "Cell", "Study", "read_study"]


@dataclass
class Arm:
    """One way to learn."""

    run: dict[str, Any] = field(default_factory=dict)
    """Values of a run file that are its own."""
    rates: list[float] = field(default_factory=lambda: [1e-3])
    """Peak learning rates; the one to tell is chosen for each budget."""
    trial: str | None = None
    """A module of `trials`, where the library has no such option."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the trial is given."""
    trained_as: str | None = None
    """Another arm whose runs are measured, with this arm's trial as another dial."""


@dataclass
class Study:
    """What is compared. Steps, batches and their order are the same for all arms of a seed."""

    base: str
    shifts: list[str]
    arms: dict[str, Arm]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    steps: int = 150
    rows: int = 4
    length: int = 256
    dtype: str = "float32"
    train_characters: int | None = None
    """Text that is read to train on: about what the steps need, as reading takes time, too."""
    kept: list[str] = field(default_factory=lambda: ["tinystories", "wikipedia"])
    """Texts that are told and chose nothing."""
    yardstick: str = "full"
    """The arm whose best gain, as trained at its best rate, the others' gains are shares of."""
    compared_with: str | None = None
    """The arm that each seed of the others is compared with; null = the yardstick."""
    budgets: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1])
    """KL(base || model) on own text, in nats per token, that a dial may cost."""
    dials: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 1.0])
    """Where own text is measured; between two of them KL is taken to be linear."""
    chosen_rows: int = 24
    told_rows: int = 32
    own_sequences: int = 32
    """Rows of each set, and sequences of own text to choose on and to tell, each."""
    common: dict[str, Any] = field(default_factory=dict)
    """Values of the run file of all arms."""

    def __post_init__(self) -> None:
        """Check names and numbers (ConfigError)."""
        for shift in self.shifts:
            SHIFTS.get(shift)
        for kept in self.kept:
            KEPT.get(kept)
        self.compared_with = self.compared_with or self.yardstick
        for name in ("yardstick", "compared_with"):
            check_choice(name, getattr(self, name), self.arms)
        for name, arm in self.arms.items():
            if arm.trained_as is not None:
                check_choice(f"arms.{name}.trained_as", arm.trained_as, self.arms)
                if self.arms[arm.trained_as].trained_as or not set(arm.rates) <= set(
                    self.arms[arm.trained_as].rates
                ):
                    raise ConfigError(
                        f"arms.{name}: {arm.trained_as!r} is no arm with runs of its own at these "
                        "rates."
                    )
        if self.budgets != sorted(self.budgets) or self.dials != sorted(self.dials):
            raise ConfigError("budgets and dials are given from small to large.")

    def cells(self) -> Iterator["Cell"]:
        """All cells; a seed is done before the next begins."""
        for seed in self.seeds:
            for shift in self.shifts:
                for name, arm in self.arms.items():
                    for rate in arm.rates:
                        yield Cell(name, arm, shift, rate, seed)


@dataclass(frozen=True)
class Cell:
    """One run: an arm on a shift, at a rate, with a seed."""

    name: str
    arm: Arm
    shift: str
    rate: float
    seed: int

    def folder(self, output: Path, name: str | None = None) -> Path:
        """Where its files lie; of another arm with a name."""
        arm = (name or self.name).replace(" ", "_").replace("/", "-")
        return output / self.shift / arm / f"{self.rate:g}" / str(self.seed)


def read_study(path: Path) -> Study:
    """A study from its file (ConfigError for what it cannot mean)."""
    return build(Study, read_yaml(path), str(path))
