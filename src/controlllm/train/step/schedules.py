r"""Learning-rate schedules: pure functions of the step.

T steps in all, t of them done, w of warm-up, m = `min_lr_rate`. The first w steps rise
linearly, (t + 1) / (w + 1); never from 0, so no step is wasted. Afterwards the share of the peak is

| `lr_scheduler_type` | share of the peak |
|---|---|
| `cosine` | m + (1 - m) (1 + cos(pi p)) / 2, p = (t - w) / (T - w) |
| `linear` | m + (1 - m) (1 - p) |
| `constant` | 1 |
| `warmup_stable_decay` | 1; in the last d steps m + (1 - m) h(q), q = (t - (T - d)) / d |
| `step` | gamma^k, k = how many of `lr_milestones` are at most t |

with d = `lr_decay_steps`, gamma = `lr_gamma` and h by `lr_decay_type`: `linear` 1 - q, `cosine`
(1 + cos(pi q)) / 2, `1-sqrt` 1 - sqrt(q). From T on it stays as it is at T.

Sources: `warmup_stable_decay` is MiniCPM's (arXiv 2404.06395), `1-sqrt` from arXiv 2405.18392.
DeepSeek LLM (arXiv 2401.02954) used `step` with milestones 0.8 and 0.9 and gamma 0.316.

A new schedule is one more function under `@SCHEDULES.register("name")`: docs/extending/schedule.md.
"""

import math
import warnings
from collections.abc import Callable

from controlllm.common.errors import ConfigError
from controlllm.train.config.registries import SCHEDULES
from controlllm.train.config.training_config import TrainingConfig

__all__ = ["SCHEDULES", "check_schedule", "in_steps", "learning_rate_factor", "warmup_steps"]

_FALLS: dict[str, Callable[[float], float]] = {
    "linear": lambda q: 1 - q,
    "cosine": lambda q: (1 + math.cos(math.pi * q)) / 2,
    "1-sqrt": lambda q: 1 - math.sqrt(q),
}
"""From 1 to 0, by `lr_decay_type`."""


def learning_rate_factor(step: int, config: TrainingConfig, total_steps: int) -> float:
    """The learning rate as a share of the peak after so many steps, by the module's table."""
    warmup = warmup_steps(config, total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return SCHEDULES.get(config.lr_scheduler_type)(min(step, total_steps), config, total_steps)


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Steps of warm-up."""
    return in_steps(config.warmup_steps, total_steps)


def in_steps(value: float, total_steps: int) -> int:
    """A number of steps: the value itself, or below 1 that share of all steps."""
    return int(value) if value >= 1 else round(value * total_steps)


def check_schedule(config: TrainingConfig, total_steps: int) -> None:
    """Check the schedule against the length of the run.

    A run that ends within its warm-up learns next to nothing, which looks like perfect retention:
    it is warned of, and so are milestones that never come.

    Raises:
        ConfigError: warm-up and decay of `warmup_stable_decay` are longer than the run.
    """
    warmup = warmup_steps(config, total_steps)
    if warmup >= total_steps:
        warnings.warn(
            f"training.warmup_steps={warmup} is not shorter than the run ({total_steps} steps): "
            "the learning rate never reaches its peak. Lower it, or train longer.",
            stacklevel=3,
        )
    decay = in_steps(config.lr_decay_steps, total_steps)
    if config.lr_scheduler_type == "warmup_stable_decay" and warmup < total_steps < warmup + decay:
        raise ConfigError(
            f"training.warmup_steps={warmup} and training.lr_decay_steps={decay} are more than the "
            f"{total_steps} steps of the run; lower one of them, or train longer."
        )
    late = [m for m in config.lr_milestones if in_steps(m, total_steps) >= total_steps]
    if late:
        warnings.warn(
            f"training.lr_milestones: {late} lie beyond the {total_steps} steps of the run; lower "
            "them, or train longer.",
            stacklevel=3,
        )


@SCHEDULES.register("cosine")
def _cosine(step: int, config: TrainingConfig, total_steps: int) -> float:
    return _fall("cosine", _progress(step, config, total_steps), config)


@SCHEDULES.register("linear")
def _linear(step: int, config: TrainingConfig, total_steps: int) -> float:
    return _fall("linear", _progress(step, config, total_steps), config)


@SCHEDULES.register("constant")
def _constant(step: int, config: TrainingConfig, total_steps: int) -> float:
    return 1.0


@SCHEDULES.register("warmup_stable_decay")
def _wsd(step: int, config: TrainingConfig, total_steps: int) -> float:
    decay = in_steps(config.lr_decay_steps, total_steps)
    since = step - (total_steps - decay)
    return 1.0 if since <= 0 else _fall(config.lr_decay_type, since / decay, config)


@SCHEDULES.register("step")
def _step(step: int, config: TrainingConfig, total_steps: int) -> float:
    passed = sum(in_steps(milestone, total_steps) <= step for milestone in config.lr_milestones)
    return config.lr_gamma**passed


def _progress(step: int, config: TrainingConfig, total_steps: int) -> float:
    """The share of the way from the end of the warm-up to the end of the run."""
    warmup = warmup_steps(config, total_steps)
    return min((step - warmup) / max(total_steps - warmup, 1), 1.0)


def _fall(shape: str, progress: float, config: TrainingConfig) -> float:
    """From 1 down to `min_lr_rate`."""
    low = config.min_lr_rate
    return low + (1 - low) * _FALLS[shape](progress)
