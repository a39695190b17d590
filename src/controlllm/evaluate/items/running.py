"""A suite on a model, its base and its dial: everything asked once, all of it kept."""

import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from controlllm.common.distributed import ALONE, Ranks
from controlllm.common.errors import ConfigError
from controlllm.common.text.secrets import hidden
from controlllm.evaluate.forgetting.expanded import is_expanded
from controlllm.evaluate.forgetting.losses import evaluating
from controlllm.evaluate.forgetting.reference import Reference
from controlllm.evaluate.items.asking import AnswerBook, Answering
from controlllm.evaluate.items.identity import base_identity, model_identity
from controlllm.evaluate.items.loading import LoadedSuite
from controlllm.evaluate.items.metrics import check_readings, task_scores
from controlllm.evaluate.items.models import (
    StoredModel,
    live_model,
    vllm_identity,
    vllm_model,
)
from controlllm.evaluate.items.reading import read_items
from controlllm.evaluate.items.records import Asked, Evaluation, Item, Subject
from controlllm.evaluate.items.store import AnswerStore
from controlllm.evaluate.items.tasks import LoadedBenchmark, ask_harness
from controlllm.evaluate.suites.quiet_harness import quiet_harness

__all__ = [
    "Grader",
    "Target",
    "ask_model",
    "evaluate_suite",
    "stored_targets",
    "targets_of",
    "vllm_targets",
]

Opened = Callable[[], AbstractContextManager[nn.Module]]
Graded = tuple[list[Item], list[dict[str, Any]]]
Grader = Callable[[Asked, LoadedBenchmark, Mapping[str, Any], Sequence[Item]], Graded]
"""Reads strict and lenient off items whose answers are programs, and scores besides."""

BASE, TUNED, COLLAPSED, ONLY = "base", "tuned", "collapsed", "model"
_PACKAGES = ("controlllm", "lm-eval", "torch", "transformers", "datasets", "peft")


@dataclass(frozen=True)
class Target:
    """A model to be asked.

    Attributes:
        subject: how the evaluation names it.
        opened: while this is open, what is yielded answers as it.
    """

    subject: Subject
    opened: Callable[[], AbstractContextManager[Answering]]


def targets_of(
    model: nn.Module,
    tokenizer: Any,
    name: str,
    *,
    reference: Reference | None = None,
    reference_name: str | None = None,
    alphas: Sequence[float] = (),
    collapsed: bool = False,
    batch_size: int = 8,
    max_length: int | None = None,
) -> Iterator[Target]:
    """The base first, then the model as it is, then along the dial, then collapsed.

    Alpha 0 is the base, and is asked as the base only; of a sidecar beside earlier ones it is the
    model as it was before, and is asked.

    Args:
        model: the trained model.
        tokenizer: that makes its inputs.
        name: where it was loaded from.
        reference: its base; an expanded model is its own.
        reference_name: where the base was loaded from; None = with the model.
        alphas: further settings of the dial, in [0, 1].
        collapsed: whether the model folded into the base's form is asked, too.
        batch_size: sequences per forward pass.
        max_length: longest input in tokens; None = the model's own.

    Raises:
        ConfigError: a dial or a collapse is asked of a model that is not expanded.
        ModelError: the model cannot be collapsed.
    """
    expanded: Any = model
    if (alphas or collapsed) and not is_expanded(model):
        raise ConfigError(
            f"{type(model).__name__} is not expanded: it has no alpha and nothing to collapse."
        )
    if reference is None and is_expanded(model):
        reference = Reference(model)

    def target(subject: Subject, opened: Opened) -> Target:
        return Target(subject, partial(_live, opened, tokenizer, batch_size, max_length))

    if reference is not None:
        with reference.active() as base:
            identity = base_identity(base, tokenizer)
        yield target(Subject(BASE, reference_name or name, 0.0, identity), reference.active)
    identity = model_identity(model, tokenizer)
    label = TUNED if reference is not None else ONLY
    dial = expanded.expansion.dial if is_expanded(model) else None
    alpha_now = float(dial) if isinstance(dial, int | float) else None
    yield target(Subject(label, name, alpha_now, identity), lambda: nullcontext(model))
    # Settings that look alike are one; 0 is the base, and the dial's own is the model as it is.
    beside = len(getattr(model, "sidecars", ())) > 1
    asked = {alpha_now} if beside else {0, alpha_now}
    settings = {f"{alpha:g}": alpha for alpha in alphas if alpha not in asked}
    for written, alpha in settings.items():
        told = Subject(f"alpha {written}", name, alpha, identity | {"alpha": written})
        yield target(told, partial(_dialled, expanded, alpha))
    if collapsed:
        from controlllm.expansion import collapse

        plain = collapse(expanded)
        told = Subject(COLLAPSED, name, None, model_identity(plain, tokenizer))
        yield target(told, lambda: nullcontext(plain))


def vllm_targets(model: str, reference: str | None, dtype: str = "auto") -> Iterator[Target]:
    """Plain or collapsed models that vLLM loads, the base first where there is one.

    Args:
        model: its folder.
        reference: the folder of its base.
        dtype: of the weights, by vLLM's names.

    Raises:
        ConfigError: vLLM is not installed, or a folder holds no whole weights.
    """
    label = TUNED if reference is not None else ONLY
    named = [(BASE, reference), (label, model)]
    told = [(name, folder) for name, folder in named if folder is not None]
    # All of them are looked at before the first is asked.
    identities = [vllm_identity(folder, dtype) for _, folder in told]
    return iter(
        [
            Target(Subject(name, folder, None, identity), partial(vllm_model, folder, dtype))
            for (name, folder), identity in zip(told, identities, strict=True)
        ]
    )


def ask_model(
    suite: LoadedSuite,
    subject: Subject,
    model: Any,
    tokenizer: Any,
    *,
    store: str | Path | None,
    batch_size: int = 8,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Ask one model a suite, as it is now; for models that go on to train. Collective.

    Args:
        suite: the questions.
        subject: how it is named, and its identity where answers are kept.
        model: of transformers, whole on each process.
        tokenizer: that makes its inputs.
        store: folder of all answers; None = they are kept in memory only.
        batch_size: sequences per forward pass.
        ranks: the processes that share the questions.

    Raises:
        ConfigError, DataError: as `evaluate_suite`.
    """
    asked = suite.for_tokenizer(tokenizer).benchmarks
    opened = partial(_live, lambda: nullcontext(model), tokenizer, batch_size)
    return evaluate_suite(suite.name, asked, [Target(subject, opened)], store=store, ranks=ranks)


def stored_targets(evaluation: Evaluation, tokenizer: Any) -> Iterator[Target]:
    """The models of an earlier evaluation, of which only the answers in the store are read.

    Args:
        evaluation: the earlier one; its models are told by their identities.
        tokenizer: whose chat template stands around questions; its model is not loaded.
    """

    def target(subject: Subject) -> Target:
        model: Answering = StoredModel(subject.room, tokenizer)
        return Target(subject, lambda: nullcontext(model))

    yield from map(target, evaluation.models)


@contextmanager
def _live(
    opened: Opened, tokenizer: Any, batch_size: int, max_length: int | None = None
) -> Iterator[Answering]:
    """A model of this process in evaluation mode, as it answers."""
    with opened() as model, evaluating(model):
        yield live_model(model, tokenizer, batch_size, max_length)


@contextmanager
def _dialled(model: Any, alpha: float) -> Iterator[nn.Module]:
    trained = model.expansion.dial
    model.set_alpha(alpha)
    try:
        yield model
    finally:
        model.stand_at(trained)


def evaluate_suite(
    suite: str,
    benchmarks: Sequence[tuple[Asked, LoadedBenchmark]],
    targets: Iterable[Target],
    *,
    store: str | Path | None,
    ranks: Ranks = ALONE,
    graders: Mapping[str, Grader] | None = None,
) -> Evaluation:
    """Ask every model every question. Collective where there are several processes.

    What was asked before, of the same weights in the same precision, is read from the store: an
    evaluation that was killed goes on, and all runs on one base share its answers.

    Args:
        suite: its name.
        benchmarks: what is asked, and lm-eval's tasks of it.
        targets: whom; see `targets_of`.
        store: folder of all answers; None = they are kept in memory only.
        ranks: the processes that share the work; each has the whole model.
        graders: by kind of benchmark, what reads its items beyond lm-eval ("code").

    Raises:
        ConfigError: a benchmark is to be read by a metric that its tasks have not, or written
            answers do not fit into the model.
        DataError: answers cannot be kept, or a model gives no number.
    """
    for asked, loaded in benchmarks:
        check_readings(asked, loaded)
    subjects, items, scores = [], {}, []
    told: set[str] = set()
    for target in targets:
        with target.opened() as model:
            kept = AnswerStore(store, target.subject.identity)
            book = AnswerBook(model, kept, target.subject.label, ranks)
            found: list[Item] = []
            for asked, loaded in benchmarks:
                with quiet_harness(asked.name, told):
                    results = ask_harness(loaded, book)
                    rows = read_items(asked, loaded, results, book)
                values = list(task_scores(results))
                if grade := (graders or {}).get(asked.kind):
                    rows, more = ranks.first(lambda: grade(asked, loaded, results, rows))  # noqa: B023
                    values += more
                found += rows
                scores += [{"model": target.subject.label} | row for row in values]
        seconds = round(book.seconds, 3)
        subjects.append(replace(target.subject, room=model.room, seconds=seconds))
        items[target.subject.label] = tuple(found)
    return Evaluation(
        suite=suite,
        benchmarks=tuple(asked for asked, _ in benchmarks),
        models=tuple(subjects),
        items=items,
        scores=tuple(scores),
        provenance=_provenance(),
    )


def _provenance() -> dict[str, str]:
    found = {
        "command": shlex.join(["controlllm", *map(hidden, sys.argv[1:])]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
