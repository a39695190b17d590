"""What a suite says: benchmarks with their tasks, shots, metrics and chance levels, in YAML."""

import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from importlib.resources import files
from pathlib import Path

from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.registry import check_choice
from controlllm.common.storage.schema import build
from controlllm.common.text.yamls import MAX_BYTES, parse_yaml
from controlllm.evaluate.statistics import detectable_difference
from controlllm.evaluate.texts.extraction import EXTRACTORS

__all__ = ["KINDS", "Benchmark", "Suite", "load_suite", "suite_names"]

KINDS = ("choice", "generate", "code", "likelihood")
"""Choices compared by likelihood, an answer that is generated, code that is run, a text's loss."""
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)
_DATASET = re.compile(r"[A-Za-z0-9][\w.-]{0,99}(/[A-Za-z0-9][\w.-]{0,99})?", re.ASCII)
_METRIC = re.compile(r"[A-Za-z][\w@.-]*,[\w.-]+", re.ASCII)
_DISCORDANT = 0.2
_MOST_BENCHMARKS = 200
_ENDS = (".yaml", ".yml")
_REQUIRED = {
    "name": "what tables call it",
    "tasks": "tasks or groups of lm-eval, as a list",
    "kind": f"what is asked of the model, one of {', '.join(KINDS)}",
    "items": "how many questions there are",
}


@dataclass(frozen=True)
class Benchmark:
    """One capability, measured by one or more tasks of lm-evaluation-harness.

    Attributes:
        name: what tables call it.
        tasks: tasks or groups of lm-eval, or of the folder `controlllm/evaluate/suites/tasks`.
        kind: what is asked of the model, one of `KINDS`.
        items: how many there are in full.
        dataset: its name on the hub; None where the task itself says where its data lie.
        licence: that of the data.
        chance: the share that guessing gets right.
        shots: examples before each question; None leaves it to the task.
        prompt: "chat" puts questions as chat messages, "plain" does not, "auto" where the tokenizer
            has a chat template. Base and trained model always get the same.
        strict: the metric that wants the answer in the asked format: one of lm-eval with its filter
            (`exact_match,strict-match`), or a registered extractor (`extract:last_number`). Of
            choices the metric that is read (`acc,none`); None = `acc_norm` where the task has it.
        lenient: the metric that takes the answer in any format, written likewise.
        max_new_tokens: of a generated answer; None leaves it to the task.
        extras: what `pip install` needs to be given beyond lm-eval.
        config: the part of the dataset, as the hub calls it; `*` = one for each subject.
        splits: which of its splits are read, the measured one first.
        gated: whether the hub gives the data only to those who agreed to terms.
        template: a file of `controlllm/evaluate/suites/tasks` that is laid over each task.
    """

    name: str
    tasks: tuple[str, ...]
    kind: str = setting(choices=KINDS)
    items: int = setting(at_least=1)
    dataset: str | None = None
    licence: str = "not stated"
    chance: float = setting(0.0, at_most=1)
    shots: int | None = setting(None, at_most=100)
    prompt: str = setting("auto", choices=("plain", "chat", "auto"))
    strict: str | None = None
    lenient: str | None = None
    max_new_tokens: int | None = setting(None, at_least=1)
    extras: tuple[str, ...] = ()
    config: str | None = None
    splits: tuple[str, ...] = ("test",)
    gated: bool = False
    template: str | None = None

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        check_values(self, "")
        if not self.tasks:
            raise ConfigError("tasks is empty; name at least one task of lm-eval.")
        if not self.splits:
            raise ConfigError("splits is empty; name at least the one that is measured.")
        for field, value in self._names():
            if not _NAME.fullmatch(value):
                raise ConfigError(
                    f"{field}={value[:100]!r} is no name; allowed: letters, digits, . _ + -"
                )
        if self.dataset is not None and not _DATASET.fullmatch(self.dataset):
            raise ConfigError(f"dataset={self.dataset[:200]!r} is no name on the hub.")
        for field in ("strict", "lenient"):
            _check_metric(field, getattr(self, field))

    @property
    def detectable(self) -> float:
        """The smallest difference that its items show: 80 % power, one item in five discordant."""
        return detectable_difference(_DISCORDANT**0.5, self.items)

    def _names(self) -> Iterator[tuple[str, str]]:
        yield "name", self.name
        for field in ("tasks", "splits"):
            yield from ((f"{field}[{i}]", name) for i, name in enumerate(getattr(self, field)))
        for field in ("config", "template"):
            value = getattr(self, field)
            if value not in (None, "*"):
                yield field, value


@dataclass(frozen=True)
class Suite:
    """Benchmarks that are run together.

    Attributes:
        name: its file's, without the ending.
        about: what it is for, in a sentence or two.
        benchmarks: what is measured, in order.
    """

    name: str
    about: str
    benchmarks: tuple[Benchmark, ...]

    def __post_init__(self) -> None:
        """Check that names differ (ConfigError)."""
        if not self.benchmarks or len(self.benchmarks) > _MOST_BENCHMARKS:
            raise ConfigError(f"benchmarks: give one to {_MOST_BENCHMARKS} of them.")
        names = [one.name for one in self.benchmarks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"benchmarks: {twice!r} is given twice; each needs its own name.")

    def benchmark(self, name: str) -> Benchmark:
        """The benchmark of that name.

        Raises:
            ConfigError: there is none, with the nearest name.
        """
        named = {one.name: one for one in self.benchmarks}
        check_choice(f"benchmark of suite {self.name}", name, named)
        return named[name]


def suite_names(folder: str | Path | None = None) -> list[str]:
    """Names of the suites that come with the package, and of those in a folder; sorted.

    Raises:
        ConfigError: `folder` is no folder.
    """
    return sorted({*_shipped(), *_in_folder(folder)})


def load_suite(name_or_path: str | Path, folder: str | Path | None = None) -> Suite:
    """Read a suite.

    Args:
        name_or_path: one of `suite_names`, or the path of a YAML file.
        folder: a folder with further suites.

    Raises:
        ConfigError: there is none (with the nearest name), two have the name, or the file is no
            suite: with the file and the field.
    """
    return _read(_find(str(name_or_path), folder))


def _find(name: str, folder: str | Path | None) -> Path:
    if name.endswith(_ENDS):
        return Path(name)
    own, shipped = _in_folder(folder), _shipped()
    check_choice("suite", name, {**shipped, **own})
    if name in own and name in shipped:
        raise ConfigError(
            f"suite={name!r} comes with the package and lies in {folder}, too: rename "
            f"{own[name].name}, or give its path."
        )
    return own.get(name) or shipped[name]


def _shipped() -> dict[str, Path]:
    folder = Path(str(files("controlllm.evaluate.suites"))) / "files"
    return {path.stem: path for path in folder.glob("*.yaml")}


def _in_folder(folder: str | Path | None) -> dict[str, Path]:
    if folder is None:
        return {}
    if not Path(folder).is_dir():
        raise ConfigError(f"suite_dir={str(folder)!r} is not a folder.")
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix in _ENDS)
    found: dict[str, Path] = {}
    for path in (one for one in paths if one.is_file()):
        if path.stem in found:
            raise ConfigError(f"{found[path.stem]} and {path} have one name; rename one of them.")
        found[path.stem] = path
    return found


def _read(path: Path) -> Suite:
    try:
        with path.open("rb") as file:
            values = parse_yaml(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read the suite {path}: {error.strerror}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping with `about` and `benchmarks`.")
    try:
        return _suite(path.stem, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _suite(name: str, values: dict[str, object]) -> Suite:
    for key in values:
        check_choice("field", key, ("about", "benchmarks"))
    about, items = values.get("about"), values.get("benchmarks")
    if not isinstance(about, str) or not isinstance(items, list):
        raise ConfigError("`about` must be a text and `benchmarks` a list; both are needed.")
    benchmarks = (_benchmark(item, number) for number, item in enumerate(items))
    return Suite(name, " ".join(about.split()), tuple(benchmarks))


def _benchmark(values: object, number: int) -> Benchmark:
    where = f"benchmarks[{number}]"
    if isinstance(values, dict) and isinstance(values.get("name"), str):
        where = f"benchmark {values['name'][:100]!r}"
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a mapping.")
    for key in values:
        check_choice(f"{where}: field", key, [one.name for one in fields(Benchmark)])
    for key in (one.name for one in fields(Benchmark) if one.default is MISSING):
        if key not in values:
            raise ConfigError(f"{where}: {key!r} is missing: {_REQUIRED[key]}.")
    try:
        return build(Benchmark, values, "benchmark")
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).removeprefix('benchmark.')}") from error


def _check_metric(field: str, value: str | None) -> None:
    if value is None or _METRIC.fullmatch(value):
        return
    kind, _, name = value.partition(":")
    if kind != "extract":
        raise ConfigError(
            f"{field}={value[:100]!r} names no metric; write one of lm-eval with its filter "
            "(exact_match,strict-match), or extract:last_number."
        )
    check_choice(f"{field}: extractor", name, EXTRACTORS.names())
