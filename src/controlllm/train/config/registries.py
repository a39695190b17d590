"""Names that a run file uses and users' own code may add to: back ends, losses, schedules, loggers.

They stand here, below what fills them, so that a config can check a name. Ours are reserved: they
are known before `loops.backends`, `step.loss_types`, `step.schedules` and `record.loggers` are
imported.
"""

from collections.abc import Callable
from typing import Any

from controlllm.common.registry import Registry

__all__ = ["BACKENDS", "LOGGERS", "LOSS_TYPES", "OWN_BACKENDS", "OWN_SCHEDULES", "SCHEDULES"]

OWN_BACKENDS = ("native", "hf")
"""Those of which strategies say whether they go together with them."""

BACKENDS: Registry[Callable[[Any, Any], Any]] = Registry("training.backend", OWN_BACKENDS)
"""Which loop trains: (`setup.stages.Ready`, `record.recorder.Recorder`) -> `TrainResult`."""

OWN_SCHEDULES = ("cosine", "linear", "constant", "warmup_stable_decay", "step")
"""Those whose settings are known; another may read any setting of `training`."""

SCHEDULES: Registry[Callable[[int, Any, int], float]] = Registry(
    "training.lr_scheduler_type", OWN_SCHEDULES
)
"""What follows the warm-up: share of the peak from (step, TrainingConfig, total steps)."""

LOSS_TYPES: Registry[Callable[[Any, Any], Any] | None] = Registry(
    "training.loss_type", ("ce", "dft", "eaft")
)
"""What a target's cross-entropy is multiplied by: weights (N,) from (logits (N, V), targets (N,)),
without gradient; None = by nothing."""

LOGGERS: Registry[Callable[[Any], Any]] = Registry(
    "logging.report_to", ("console", "jsonl", "tensorboard", "wandb")
)
"""Makers of loggers: `LoggerContext` -> `MetricLogger`, both of `record.loggers`."""
