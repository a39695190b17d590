"""lm-evaluation-harness in process, on the live model: base and trained side by side.

lm-eval is an optional package (`pip install 'controlllm[eval]'`); it is imported here and only
when tasks are run.
"""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from controlllm.common.context import context_of
from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.registry import check_choice
from controlllm.evaluate.forgetting.expanded import is_expanded
from controlllm.evaluate.forgetting.losses import evaluating
from controlllm.evaluate.forgetting.reference import Reference
from controlllm.evaluate.task_scores import TaskReport, task_scores

__all__ = ["HarnessConfig", "find_tasks", "run_tasks"]


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
        return TaskReport(task_scores(trained, None))
    with reference.active() as base:
        return TaskReport(task_scores(trained, _evaluate(base, tokenizer, config, manager)))


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
