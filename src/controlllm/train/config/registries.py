"""Names that a run file uses and that users' own code may add to: schedules and loggers.

They stand here, below what fills them, so that a config can check a name. Ours are reserved: they
are known before `step.schedules` and `record.loggers` are imported.
"""

from collections.abc import Callable
from typing import Any

from controlllm.common.registry import Registry

__all__ = ["LOGGERS", "OWN_SCHEDULES", "SCHEDULES"]

OWN_SCHEDULES = ("cosine", "linear", "constant", "wsd", "step")
"""Those whose settings are known; another may read any setting of `training`."""

SCHEDULES: Registry[Callable[[int, Any, int], float]] = Registry(
    "training.lr_scheduler_type", OWN_SCHEDULES
)
"""What follows the warm-up: share of the peak from (step, TrainingConfig, total steps)."""

LOGGERS: Registry[Callable[[Any], Any]] = Registry(
    "logging.report_to", ("console", "jsonl", "tensorboard", "wandb")
)
"""Makers of loggers: `LoggerContext` -> `MetricLogger`, both of `record.loggers`."""
