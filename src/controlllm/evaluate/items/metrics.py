"""Which metrics of lm-eval's tasks are read as what."""

from collections.abc import Iterator, Mapping
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.registry import check_choice
from controlllm.evaluate.items.records import Asked
from controlllm.evaluate.items.tasks import LoadedBenchmark
from controlllm.evaluate.texts import EXTRACTORS

__all__ = ["EXTRACT", "check_readings", "task_scores", "usual_asked", "usual_choice"]

EXTRACT = "extract:"
"""Before the name of an extractor, where a metric's name could stand."""
KINDS = {
    "choice": ("multiple_choice",),
    "generate": ("generate_until",),
    "code": ("generate_until",),
    "likelihood": ("loglikelihood", "loglikelihood_rolling"),
}
"""What lm-eval's tasks of each kind ask a model for."""
OF_DOCUMENTS = ("exact_match", "acc", "acc_norm", "math_verify", "f1", "em", "contains")
"""Metrics of lm-eval that are numbers of each document."""


def usual_asked(name: str, benchmark: LoadedBenchmark, **known: Any) -> Asked:
    """How a task that no suite describes is read: by its first metric, and by its second filter.

    Args:
        name: of the task or group.
        benchmark: it, loaded.
        known: further fields of `Asked`.
    """
    task = next(iter(benchmark.tasks.values()))
    metrics = list(task.aggregation())
    if task.OUTPUT_TYPE == "multiple_choice":
        return Asked(name, (name,), "choice", choice=usual_choice(benchmark), **known)
    if task.OUTPUT_TYPE != "generate_until":
        return Asked(name, (name,), "likelihood", **known)
    filters = [one.name for one in getattr(task, "_filters", ())] or ["none"]
    numbers = [one for one in metrics if one in OF_DOCUMENTS]
    if not numbers:  # BLEU and the like: numbers of a whole set, which `scores` hold.
        return Asked(name, (name,), "generate", **known)
    lenient = f"{numbers[0]},{filters[1]}" if len(filters) > 1 else None
    return Asked(
        name, (name,), "generate", strict=f"{numbers[0]},{filters[0]}", lenient=lenient, **known
    )


def usual_choice(benchmark: LoadedBenchmark) -> str:
    """The metric of the likeliest choice where nobody names one: by character, if it is there."""
    metrics = list(next(iter(benchmark.tasks.values())).aggregation())
    return next(
        (f"{one},none" for one in ("acc_norm", "acc") if one in metrics), f"{metrics[0]},none"
    )


def check_readings(asked: Asked, benchmark: LoadedBenchmark) -> None:
    """Check that the tasks are of the kind, and have the metrics that are to be read.

    Raises:
        ConfigError: with the kind that they are, or the nearest name.
    """
    for name, task in benchmark.tasks.items():
        if task.OUTPUT_TYPE not in KINDS[asked.kind]:
            fit = [kind for kind, types in KINDS.items() if task.OUTPUT_TYPE in types]
            raise ConfigError(
                f"{asked.name}: kind={asked.kind!r}, but {name} asks for {task.OUTPUT_TYPE}; write "
                f"kind: {' or '.join(fit) or 'one that fits'}."
            )
    for name in filter(None, (asked.strict, asked.lenient, asked.choice)):
        if name.startswith(EXTRACT):
            check_choice(f"{asked.name}: extractor", name.removeprefix(EXTRACT), EXTRACTORS.names())
            continue
        metric, _, which = name.partition(",")
        for task in benchmark.tasks.values():
            filters = [one.name for one in getattr(task, "_filters", ())] or ["none"]
            check_choice(f"{asked.name}: metric", metric, task.aggregation())
            check_choice(f"{asked.name}: filter of {metric}", which or "none", filters)


def task_scores(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """lm-eval's own values of tasks and groups: task, metric (with its filter), value."""
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, _, which = key.partition(",")
            told = which and metric != "bypass" and not metric.endswith("_stderr")
            if told and isinstance(value, int | float):
                name = metric if which == "none" else key
                yield {"task": task, "metric": name, "value": float(value)}
