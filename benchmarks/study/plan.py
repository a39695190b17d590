"""A study as a YAML says it: which cells it has, and in which order they are run."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.study.items import chosen_suite
from benchmarks.study.texts import KEPT, SHIFTS

from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.registry import check_choice
from controlllm.common.settings import LARGEST_SEED, TINY
from controlllm.train.config.config_io import build, read_yaml

__all__ = ["TOLD_ON", "Arm", "Cell", "Study", "read_study"]

TRIALS = Path(__file__).parent / "trials"
TOLD_ON = {"told_rows", "told_sequences", "kept", "kept_rows", "benchmarks", "questions"}
"""Fields that say what is told: where they change, a cell is told again, not trained again."""
_NOT_OF_CELL = {"shifts", "arms", "seeds", "yardstick", "compared_with"}
"""Fields that say which cells there are, and how they are told."""
LONGEST_NAME = 100
"""Characters of an arm's name: it names a folder, and stands in tables."""


@dataclass
class Arm:
    """One way to learn."""

    run: dict[str, Any] = field(default_factory=dict)
    """Values of a run file that are its own."""
    rates: list[float] = setting(factory=lambda: [1e-3], at_least=TINY)
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
    seeds: list[int] = setting(factory=lambda: [0, 1, 2], at_most=LARGEST_SEED)
    steps: int = setting(150, at_least=1)
    rows: int = setting(4, at_least=1)
    length: int = setting(256, at_least=4)
    dtype: str = "float32"
    train_characters: int | None = setting(None, at_least=1)
    """Text that is read to train on: about what the steps need, as reading takes time, too."""
    kept: list[str] = field(default_factory=lambda: ["tinystories", "wikipedia"])
    """Texts that are told and chose nothing."""
    yardstick: str = "full"
    """The arm whose best gain, as trained at its best rate, the others' gains are shares of."""
    compared_with: str | None = None
    """The arm that each seed of the others is compared with; null = the yardstick."""
    budgets: list[float] = setting(factory=lambda: [0.01, 0.03, 0.1], at_least=TINY)
    """KL(base || model) on own text, in nats per token, that a dial may cost."""
    dials: list[float] = setting(
        factory=lambda: [0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 1.0], at_least=TINY
    )
    """Where own text is measured; between two of them the root of KL is taken to be linear."""
    chosen_rows: int = setting(24, at_least=1)
    told_rows: int = setting(32, at_least=1)
    own_sequences: int = setting(32, at_least=8)
    """Rows of each set, and sequences of own text to choose on, of each kind."""
    kept_rows: int | None = setting(None, at_least=1)
    """Rows of each kept text; null = as many as of the new one are told."""
    told_sequences: int | None = setting(None, at_least=8)
    """Sequences of own text that are told; null = as many as are chosen on."""
    benchmarks: list[str] = field(default_factory=list)
    """Of the suite `small`: what base and model are asked at each setting of the dial."""
    questions: int = setting(24, at_least=1)
    """Drawn of each benchmark, the same for all cells."""
    common: dict[str, Any] = field(default_factory=dict)
    """Values of the run file of all arms."""

    def __post_init__(self) -> None:
        """Check names and numbers (ConfigError)."""
        for shift in self.shifts:
            SHIFTS.get(shift)
        for kept in self.kept:
            KEPT.get(kept)
        check_values(self, "study")
        if self.benchmarks:
            chosen_suite(self.benchmarks)
        for name in ("shifts", "seeds", "kept", "budgets", "dials", "benchmarks"):
            _check_once(name, getattr(self, name), may_be_empty=name in ("kept", "benchmarks"))
        self.compared_with = self.compared_with or self.yardstick
        self.kept_rows = self.kept_rows or self.told_rows
        self.told_sequences = self.told_sequences or self.own_sequences
        for name in ("yardstick", "compared_with"):
            check_choice(name, getattr(self, name), self.arms)
        folders: dict[str, str] = {}
        for name, arm in self.arms.items():
            other = folders.setdefault(_folder_name(name).casefold(), name)
            if other != name:
                raise ConfigError(f"arms {other!r} and {name!r} would share a folder: rename one.")
            _check_arm(name, arm)
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
        """All cells; a seed is done before the next begins, and what is measured again last."""
        for seed in self.seeds:
            for shift in self.shifts:
                for name, arm in sorted(
                    self.arms.items(), key=lambda item: bool(item[1].trained_as)
                ):
                    for rate in arm.rates:
                        yield Cell(name, arm, shift, rate, seed)

    def trained(self, cell: "Cell") -> "Cell":
        """The cell whose run is measured: itself, or that of the arm it is trained as."""
        name = cell.arm.trained_as
        return cell if name is None else replace(cell, name=name, arm=self.arms[name])

    def of(self, cell: "Cell") -> dict[str, Any]:
        """All that the numbers of a cell come from, as JSON holds it."""
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_OF_CELL}
        arms = (cell.arm, self.trained(cell).arm)
        said = [{k: v for k, v in asdict(arm).items() if k != "rates"} for arm in arms]
        return json.loads(json.dumps(shared | {"arm": said[0], "trained_as": said[1]}))


@dataclass(frozen=True)
class Cell:
    """One run: an arm on a shift, at a rate, with a seed."""

    name: str
    arm: Arm
    shift: str
    rate: float
    seed: int

    def folder(self, output: Path) -> Path:
        """Where its files lie."""
        return output / self.shift / _folder_name(self.name) / f"{self.rate:g}" / str(self.seed)


def read_study(path: Path) -> Study:
    """A study from its file (ConfigError for what it cannot mean)."""
    return build(Study, read_yaml(path), str(path))


def _folder_name(arm: str) -> str:
    return arm.replace(" ", "_").replace("/", "-")


def _check_once(name: str, values: Sequence[Any], may_be_empty: bool = False) -> None:
    if not (values or may_be_empty):
        raise ConfigError(f"{name} is empty; give at least one.")
    told = [f"{value:g}" if isinstance(value, float) else value for value in values]
    if len(set(told)) < len(told):
        raise ConfigError(f"{name}={list(values)!r} names one of them twice.")


def _check_arm(name: str, arm: Arm) -> None:
    """Check what an arm says by itself (ConfigError)."""
    if name.strip(" .") == "" or not name.isprintable() or len(name) > LONGEST_NAME:
        raise ConfigError(
            f"arms: {name!r} cannot name a folder; give {LONGEST_NAME} printable characters at "
            "most, not dots alone."
        )
    check_values(arm, f"arms.{name}")
    _check_once(f"arms.{name}.rates", arm.rates)
    if arm.trial is None:
        if arm.settings:
            raise ConfigError(f"arms.{name}.settings would not be used: they are a trial's.")
    else:
        check_choice(f"arms.{name}.trial", arm.trial, (file.stem for file in TRIALS.glob("*.py")))
    if arm.trained_as is not None and (arm.run or arm.trial is None):
        raise ConfigError(
            f"arms.{name}: with trained_as the run is {arm.trained_as!r}'s; give a trial that "
            "measures it otherwise, and no values of a run."
        )
