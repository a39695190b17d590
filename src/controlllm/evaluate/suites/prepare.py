"""A folder of lm-eval tasks for a suite: stock tasks by reference, pointed to local files.

What is written are YAMLs that include lm-eval's own and say anew where the data lie, how many
examples are given and how long an answer may be. No code is written, and none is named but
lm-eval's.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from controlllm.common.errors import ConfigError
from controlllm.common.storage.files import require_empty
from controlllm.evaluate.suites.layouts import SAME, Found, find_files, usual_place
from controlllm.evaluate.suites.rows import read_rows
from controlllm.evaluate.suites.stock import Leaf, Tasks, read_template
from controlllm.evaluate.suites.suite import Benchmark, Suite

__all__ = ["Prepared", "prepare_tasks"]

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_length")
_SHOWN = 5
_MAGIC = re.compile(r"[*?\[\]{}]|://|::")


@dataclass(frozen=True)
class Prepared:
    """What `prepare_tasks` wrote; everything by the benchmark's name.

    Attributes:
        include_path: the folder for lm-eval's `TaskManager(include_path=...)`; it suffices, with
            `include_defaults=False`.
        tasks: the task or group to ask it for.
        leaves: the tasks below that, which have documents of their own.
        files: the local files that are read; empty where the hub is asked.
        left_out: subjects that local data lack, while others are there.
    """

    include_path: Path
    tasks: Mapping[str, str]
    leaves: Mapping[str, tuple[str, ...]]
    files: Mapping[str, tuple[Path, ...]]
    left_out: Mapping[str, tuple[str, ...]]


def prepare_tasks(
    suite: Suite,
    data_dir: str | Path | None,
    folder: str | Path,
    include_path: Sequence[str | Path] = (),
) -> Prepared:
    """Write the tasks of a suite.

    Args:
        suite: which benchmarks.
        data_dir: a folder with local data (docs/suites.md); a benchmark that has none there keeps
            its name on the hub.
        folder: where to write; absent or empty.
        include_path: folders with further task files that the suite names.

    Raises:
        ConfigError: lm-eval is not installed, a task is not known (with the nearest name),
            `data_dir` is no folder, or what lies there does not do for a benchmark.
        CheckpointError: `folder` is not empty.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ConfigError(f"data_dir={str(data_dir)!r} is not a folder.")
    require_empty(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    names = [task for benchmark in suite.benchmarks for task in benchmark.tasks]
    writer = _Writer(
        Tasks(list(dict.fromkeys(names)), include_path),
        None if data_dir is None else Path(data_dir).absolute(),
        Path(folder).absolute(),
    )
    written = {benchmark.name: writer.benchmark(benchmark) for benchmark in suite.benchmarks}
    return Prepared(
        include_path=writer.folder,
        tasks={name: one.task for name, one in written.items()},
        leaves={name: one.leaves for name, one in written.items()},
        files={name: one.files for name, one in written.items()},
        left_out={name: one.left_out for name, one in written.items() if one.left_out},
    )


@dataclass(frozen=True)
class _Written:
    """A benchmark's part of `Prepared`."""

    task: str
    leaves: tuple[str, ...]
    files: tuple[Path, ...]
    left_out: tuple[str, ...]


class _Writer:
    """Writes the YAMLs of one folder."""

    def __init__(self, tasks: Tasks, data_dir: Path | None, folder: Path) -> None:
        self.tasks, self.data_dir, self.folder = tasks, data_dir, folder
        self.names: set[str] = set()

    def benchmark(self, benchmark: Benchmark) -> _Written:
        """Write a benchmark's tasks, and their group if there are several."""
        leaves = self.tasks.leaves(benchmark.tasks)
        many = len(leaves) > 1 or benchmark.tasks != (leaves[0].name,)
        found = [self._find(leaf, benchmark) for leaf in leaves]
        there = [pair for pair in zip(leaves, found, strict=True) if pair[1] is not None]
        chosen = there or [(leaf, None) for leaf in leaves]
        named = {leaf.name: name for leaf, name in _named(benchmark, leaves, many)}
        for leaf, one in chosen:
            self._write(named[leaf.name], self._task(benchmark, leaf, named[leaf.name], one))
        names = tuple(named[leaf.name] for leaf, _ in chosen)
        if many:
            self._write(benchmark.name, self._group(benchmark, names))
        kept = {leaf.name for leaf, _ in chosen}
        left_out = tuple(leaf.name for leaf in leaves if leaf.name not in kept)
        if left_out:
            _warn_of(benchmark, left_out, len(leaves), self.data_dir)
        files = [path for _, one in there if one for paths in one.files.values() for path in paths]
        task = benchmark.name if many else names[0]
        return _Written(task, names, tuple(files), left_out)

    def _find(self, leaf: Leaf, benchmark: Benchmark) -> Found | None:
        """The local files of a task, those of its examples with them."""
        values = _values(leaf, benchmark)
        dataset, measured = values.get("dataset_path"), _measured(values)
        if self.data_dir is None or not isinstance(dataset, str) or measured is None:
            return None
        config, examples = values.get("dataset_name"), _examples(values, benchmark)
        others = [examples, *(values.get(key) for key in _SPLITS)]
        splits = [measured, *(one for one in dict.fromkeys(others) if one not in (None, measured))]
        found = find_files(self.data_dir, dataset, config, splits)
        if found is not None and examples is not None and examples not in found.files:
            place = self.data_dir / usual_place(dataset, config, examples)
            raise ConfigError(
                f"benchmark {benchmark.name!r} gives examples of the split {examples}, which is "
                f"not in {self.data_dir}: put it in {place}."
            )
        return found

    def _task(
        self, benchmark: Benchmark, leaf: Leaf, name: str, found: Found | None
    ) -> dict[str, Any]:
        include = [str(leaf.path.absolute())]
        if benchmark.template is not None:
            include.append(str(read_template(benchmark.template)[0]))
        said: dict[str, Any] = {"include": include, **leaf.over, "task": name, "tag": None}
        if name != benchmark.name:
            said["task_alias"] = name.removeprefix(f"{benchmark.name}_")
        values = _values(leaf, benchmark)
        if values.get("dataset_path") in SAME:
            said["dataset_path"] = SAME[values["dataset_path"]]
        if benchmark.shots is not None:
            said["num_fewshot"] = benchmark.shots
        if benchmark.max_new_tokens is not None and values.get("output_type") == "generate_until":
            old = values.get("generation_kwargs") or {}
            kept = {key: value for key, value in old.items() if key not in _LENGTHS}
            said["generation_kwargs"] = {**kept, "max_gen_toks": benchmark.max_new_tokens}
        return said | (self._local(name, values, found) if found else {})

    def _local(self, name: str, values: Mapping[str, Any], found: Found) -> dict[str, Any]:
        """What points a task to local files; splits that are not there are not named."""
        builder, files = found.builder, found.files
        if builder == "csv" or found.layout.form is not None:
            builder, files = "json", self._rewritten(name, found)
        for path in (path for paths in files.values() for path in paths):
            if _MAGIC.search(str(path)):
                raise ConfigError(
                    f"{path}: data cannot be read where a path has * ? [ ] {{ }} or ::"
                )
        kwargs: dict[str, Any] = {
            "data_files": {split: [str(path) for path in paths] for split, paths in files.items()},
            "cache_dir": str(self.folder / "cache"),  # So that nothing is left of it elsewhere.
        }
        if found.rows is not None:
            kwargs["field"] = found.rows
        gone = {key: None for key in _SPLITS if values.get(key) not in (None, *files)}
        return {"dataset_path": builder, "dataset_name": None, "dataset_kwargs": kwargs, **gone}

    def _rewritten(self, name: str, found: Found) -> dict[str, tuple[Path, ...]]:
        """The same rows as JSON lines with the hub's fields."""
        written: dict[str, tuple[Path, ...]] = {}
        for split, paths in found.files.items():
            target = self.folder / "data" / name / f"{split}.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("w", encoding="utf-8") as out:
                for path in paths:
                    for row in read_rows(path, found.layout.form):
                        out.write(json.dumps(row, ensure_ascii=False) + "\n")
            written[split] = (target,)
        return written

    def _group(self, benchmark: Benchmark, names: Sequence[str]) -> dict[str, Any]:
        stock = [one for task in benchmark.tasks[:1] for one in self.tasks.means(task)]
        means = [] if benchmark.template or len(benchmark.tasks) > 1 else stock
        for metric in (benchmark.strict, benchmark.lenient):
            name, comma, chain = (metric or "").partition(",")
            if comma and name not in [one.get("metric") for one in means]:
                means = [*means, {"metric": name, "aggregation": "mean", "weight_by_size": True}]
                means[-1]["filter_list"] = [chain]
        said: dict[str, Any] = {"group": benchmark.name, "task": list(names)}
        return said | {"aggregate_metric_list": means} if means else said

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        if name in self.names:
            raise ConfigError(f"two tasks would be called {name!r}: rename a benchmark.")
        self.names.add(name)
        text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
        (self.folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def _warn_of(
    benchmark: Benchmark, left_out: Sequence[str], count: int, data_dir: Path | None
) -> None:
    more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
    warnings.warn(
        f"{benchmark.name}: {len(left_out)} of its {count} tasks are left out, as {data_dir} has "
        f"no data for them: {', '.join(left_out[:_SHOWN])}{more}.",
        stacklevel=4,
    )


def _values(leaf: Leaf, benchmark: Benchmark) -> dict[str, Any]:
    """What a task says, its group and the benchmark's template laid over it."""
    laid = read_template(benchmark.template)[1] if benchmark.template else {}
    return {**leaf.values, **laid, **leaf.over}


def _measured(values: Mapping[str, Any]) -> str | None:
    """The split whose documents lm-eval asks."""
    return values.get("test_split") or values.get("validation_split")


def _examples(values: Mapping[str, Any], benchmark: Benchmark) -> str | None:
    """The split that examples are drawn from; None if there are none, or they are written out."""
    shots = values.get("num_fewshot") if benchmark.shots is None else benchmark.shots
    if not shots or (values.get("fewshot_config") or {}).get("samples") is not None:
        return None
    return next((values[key] for key in (_SPLITS[3], *_SPLITS[:3]) if values.get(key)), None)


def _named(benchmark: Benchmark, leaves: Sequence[Leaf], many: bool) -> Iterator[tuple[Leaf, str]]:
    """Each task with its name in the folder: the benchmark's, and its subject where many are."""
    configs = [leaf.values.get("dataset_name") for leaf in leaves]
    for leaf, config in zip(leaves, configs, strict=True):
        subject = str(config) if config and configs.count(config) == 1 else leaf.name
        subject = re.sub(r"[^\w.-]", "_", subject.removeprefix(f"{benchmark.name}_"))
        yield leaf, f"{benchmark.name}_{subject}" if many else benchmark.name
