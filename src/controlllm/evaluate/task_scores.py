"""Scores of tasks, base and trained model paired document by document."""

from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from controlllm.common.errors import DataError
from controlllm.common.storage.files import write_json
from controlllm.common.text.tables import format_number, format_table
from controlllm.evaluate.statistics import Difference, Interval, mcnemar, paired_difference

__all__ = ["TaskReport", "TaskScore", "task_scores"]

SHARED = ("passage", "context", "article", "story")
"""Fields of a document that several questions share: their answers are not independent."""


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
        headers = ["task", "metric", "n", "base", "trained", "± stderr of trained"]
        headers += ["difference", "95 % of difference", "McNemar's p"]
        rows = [
            [
                score.task,
                score.metric + {True: " ↑", False: " ↓", None: ""}[score.higher_is_better],
                score.samples,
                score.base,
                score.value,
                score.stderr,
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


def task_scores(
    trained: Mapping[str, Any], base: Mapping[str, Any] | None
) -> tuple[TaskScore, ...]:
    """The scores in what lm-eval gave for the trained model, and for its base.

    Args:
        trained: results of `lm_eval.simple_evaluate` with `log_samples`.
        base: the base's results on the same tasks; None where no base was run.

    Raises:
        DataError: the two were not asked the same documents.
    """
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
