"""lm-evaluation-harness in process, on the live model: base and trained side by side.

lm-eval is an optional package (`pip install 'controlllm[eval]'`); it is imported here and only
when tasks are run.
"""

import copy
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from controlllm.common.context import context_of
from controlllm.common.errors import ConfigError, DataError
from controlllm.common.facts import check_values, setting
from controlllm.common.registry import check_choice
from controlllm.common.storage.files import write_json
from controlllm.common.text.tables import format_number, format_table
from controlllm.evaluate.expanded import is_expanded
from controlllm.evaluate.losses import evaluating
from controlllm.evaluate.reference import Reference
from controlllm.evaluate.statistics import Difference, Interval, mcnemar, paired_difference

__all__ = ["HarnessConfig", "TaskReport", "TaskScore", "find_tasks", "run_tasks"]

SHARED = ("passage", "context", "article", "story")
"""Fields of a document that several questions share: their answers are not independent."""


@dataclass(frozen=True)
class HarnessConfig:
    """Which tasks, and how they are run.

    Attributes:
        tasks: names of tasks, groups or tags, of lm-eval or of the extra folders.
        include_path: folders with further task files (YAML).
        num_fewshot: examples before each question; None leaves it to the task.
        limit: documents per task, counted from the first; None means all.
        batch_size: sequences per forward pass.
        max_length: longest input in tokens; None means the model's own.
        apply_chat_template: whether questions are put as chat messages.
    """

    tasks: Sequence[str]
    include_path: Sequence[str | Path] = ()
    num_fewshot: int | None = setting(None)
    limit: int | None = setting(None, at_least=1)
    batch_size: int = setting(8, at_least=1)
    max_length: int | None = None
    apply_chat_template: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without lm-eval."""
        if not self.tasks:
            raise ConfigError("tasks is empty; name at least one lm-eval task.")
        check_values(self, "")
        for folder in self.include_path:
            if not Path(folder).is_dir():
                raise ConfigError(f"include_path={str(folder)!r} is not a folder.")


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task.

    Attributes:
        task: name of the task or group.
        metric: name of the metric, with the filter where there is one ("exact_match,strict").
        base: value of the base; None where no base was run.
        value: value of the trained model.
        stderr: standard error of `value`; None where the task gives none.
        samples: how many documents were scored.
        higher_is_better: None where the task does not say.
        paired: trained minus base over the same documents; None where no base was run, or where
            the value is no mean over documents.
        p_value: exact McNemar, where every document is right or wrong; else None.
    """

    task: str
    metric: str
    base: float | None
    value: float
    stderr: float | None
    samples: int
    higher_is_better: bool | None
    paired: Difference | None = None
    p_value: float | None = None

    @property
    def interval(self) -> Interval | None:
        """The difference with its 95 % interval, which pairs the documents."""
        return None if self.paired is None else self.paired.interval()

    @property
    def difference(self) -> float | None:
        """Trained minus base."""
        return None if self.base is None else self.value - self.base


@dataclass(frozen=True)
class TaskReport:
    """All scores of one run.

    Attributes:
        scores: one per task and metric.
    """

    scores: tuple[TaskScore, ...]

    def table(self) -> str:
        """One row per task and metric: base, trained, difference with its interval."""
        headers = ["task", "metric", "n", "base", "trained", "difference", "95 %, paired", "p"]
        rows = [
            [
                score.task,
                score.metric + {True: " ↑", False: " ↓", None: ""}[score.higher_is_better],
                score.samples,
                score.base,
                score.value,
                format_number(score.difference, signed=True),
                _interval_text(score.interval),
                score.p_value,
            ]
            for score in self.scores
        ]
        return format_table(headers, rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, ready for JSON."""
        return {
            "scores": [
                asdict(score)
                | {
                    "difference": score.difference,
                    "interval": score.interval and [score.interval.low, score.interval.high],
                }
                for score in self.scores
            ]
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, atomically."""
        write_json(path, self.to_dict())


def run_tasks(
    model: nn.Module,
    tokenizer: Any,
    config: HarnessConfig,
    reference: Reference | None = None,
    manager: Any = None,
) -> TaskReport:
    """Run lm-evaluation-harness tasks on a live model, and on its base where there is one.

    Args:
        model: a causal language model of transformers, expanded or not.
        tokenizer: its tokenizer; it is not changed.
        config: the tasks and how to run them.
        reference: the base; an expanded model is its own. Without one only the model is run.
        manager: what `find_tasks` gave, if it was asked before.

    Raises:
        ConfigError: if lm-eval is not installed, a task is not known (with the nearest name), or
            the tokenizer has no chat template that was asked for.
    """
    if config.apply_chat_template and not getattr(tokenizer, "chat_template", None):
        raise ConfigError("apply_chat_template=True, but the tokenizer has no chat template.")
    manager = manager or find_tasks(config)
    if reference is None and is_expanded(model):
        reference = Reference(model)
    trained = _evaluate(model, tokenizer, config, manager)
    if reference is None:
        return TaskReport(_scores(trained, None))
    with reference.active() as base:
        return TaskReport(_scores(trained, _evaluate(base, tokenizer, config, manager)))


def find_tasks(config: HarnessConfig) -> Any:
    """lm-eval's manager of tasks, which knows those of a config.

    It knows the extra folders only, where they suffice: lm-eval's own index takes seconds.

    Raises:
        ConfigError: lm-eval is not installed, or a task is not known (with the nearest name).
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"running tasks needs lm-eval ({error}): pip install 'controlllm[eval]'."
        ) from error
    folders = [str(folder) for folder in config.include_path]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if not set(config.tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folders, include_defaults=True)
    for task in config.tasks:
        check_choice("task", task, manager.all_tasks)
    return manager


def _evaluate(
    model: nn.Module, tokenizer: Any, config: HarnessConfig, manager: Any
) -> Mapping[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with evaluating(model), _same_random_state():
        # The harness sets a padding token and side on the tokenizer it gets.
        harness_model = HFLM(
            pretrained=model,
            backend="causal",
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=config.batch_size,
            max_length=config.max_length or context_of(model),
        )
        return simple_evaluate(
            model=harness_model,
            tasks=list(config.tasks),
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            apply_chat_template=config.apply_chat_template,
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=0,  # Its errors are not paired, and start a process per CPU.
        )


@contextmanager
def _same_random_state() -> Iterator[None]:
    """The harness seeds the global generators: give them back as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _scores(trained: Mapping[str, Any], base: Mapping[str, Any] | None) -> tuple[TaskScore, ...]:
    scores = []
    for task, values in trained["results"].items():
        for key, value in values.items():
            metric, _, which = key.partition(",")
            if not which or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            paired, p_value = _paired(trained, base, task, metric, which, float(value))
            scores.append(
                TaskScore(
                    task=task,
                    metric=metric if which == "none" else key,
                    base=None if base is None else float(base["results"][task][key]),
                    value=float(value),
                    stderr=_number(values.get(f"{metric}_stderr,{which}")),
                    samples=_samples(trained, task),
                    higher_is_better=trained["higher_is_better"].get(task, {}).get(metric),
                    paired=paired,
                    p_value=p_value,
                )
            )
    return tuple(scores)


def _samples(results: Mapping[str, Any], task: str) -> int:
    """Documents of a task, or of all tasks of a group."""
    counts = results["n-samples"]
    if task in counts:
        return int(counts[task]["effective"])
    return sum(_samples(results, part) for part in results["group_subtasks"].get(task, ()))


def _paired(
    trained: Mapping[str, Any],
    base: Mapping[str, Any] | None,
    task: str,
    metric: str,
    which: str,
    value: float,
) -> tuple[Difference | None, float | None]:
    """The difference over the documents that both were asked, and whether right and wrong moved."""
    if base is None:
        return None, None
    after, before = (_items(results, task, metric, which) for results in (trained, base))
    if not after or abs(sum(item.score for item in after.values()) / len(after) - value) > 1e-6:
        return None, None  # Not a mean over documents: perplexity, or a mean over tasks.
    if after.keys() != before.keys():
        raise DataError(f"{task}: base and trained model were not asked the same documents.")
    pairs = [(before[key].score, item.score) for key, item in after.items()]
    first, second = zip(*pairs, strict=True)
    clusters = [item.cluster for item in after.values()]
    p_value = None
    if {*first, *second} <= {0.0, 1.0}:
        p_value = mcnemar([score == 1.0 for score in first], [score == 1.0 for score in second])
    return paired_difference(first, second, clusters), p_value


class _Item(NamedTuple):
    """A document's score, and what it shares with others."""

    score: float
    cluster: Hashable


def _items(
    results: Mapping[str, Any], task: str, metric: str, which: str
) -> dict[tuple[str, str], _Item]:
    """The scores of a task's documents, or of all tasks of a group, by task and document."""
    parts = results["group_subtasks"].get(task)
    if parts:
        return {k: v for part in parts for k, v in _items(results, part, metric, which).items()}
    found = {}
    for sample in results["samples"].get(task, ()):
        score = sample.get(metric)
        if sample["filter"] == which and isinstance(score, bool | int | float):
            key = (task, sample["doc_hash"] + str(sample["doc_id"]))
            shared = [sample["doc"][name] for name in SHARED if name in sample["doc"]]
            found[key] = _Item(float(score), (task, str(shared)) if shared else key)
    return found


def _interval_text(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:+.4f} to {interval.high:+.4f}"


def _number(value: Any) -> float | None:
    """lm-eval writes "N/A" where it has no standard error."""
    return float(value) if isinstance(value, int | float) else None
