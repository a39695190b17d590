"""Which settings of a run are read when: what is said and not read is refused, or warned of.

Refused is what the run would be another one with, or would break a promise without; it is looked at
when the config is made. Warned of, as training begins, is what belongs to a part that is switched
off: one file may serve for several methods and places.
"""

from collections.abc import Callable
from typing import Any

from controlllm.common.settings import Rule, check_said
from controlllm.common.storage.remote import is_remote
from controlllm.expansion.method.unread import trains_interpolators
from controlllm.train.config.methods import METHODS
from controlllm.train.config.presets import PRESETS
from controlllm.train.config.registries import OWN_SCHEDULES

__all__ = ["REFUSED", "WARNED", "refuse_unread", "warn_of_unread"]

_FALLING = ("cosine", "linear", "wsd")


def _measures(run: Any) -> bool:
    return bool(run.data.learn or run.data.retain)


def _trains_interpolator(run: Any) -> bool:
    return METHODS.get(run.method).expands and trains_interpolators(run.expansion)


def _resumes_elsewhere(run: Any) -> bool:
    training = run.training
    return training.remote_dir is not None or is_remote(training.resume_from_checkpoint)


def _is_by(*names: str) -> Callable[[Any], bool]:
    """Whether the schedule is one of these, or not ours: what that reads is not known."""
    others = set(OWN_SCHEDULES) - set(names)
    return lambda run: run.training.lr_scheduler_type not in others


def _is_read(section: str) -> Callable[[Any], bool]:
    return lambda run: METHODS.get(run.method).section == section


_REHEARSES = "rehearsal.num_sequences and rehearsal.share are above 0"

REFUSED = (
    Rule(
        "training.max_forgetting",
        lambda run: bool(run.data.retain),
        "it is a budget for data.retain, which names no set; name one, or leave it out",
    ),
    Rule(
        "training.min_learning_rate_ratio",
        _is_by(*_FALLING),
        "training.lr_scheduler_type=cosine, linear or wsd end at it; take one, or leave it out",
    ),
    *(
        Rule(
            f"training.{name}",
            _is_by("wsd"),
            "only training.lr_scheduler_type=wsd reads it; set that, or leave it out",
        )
        for name in ("lr_decay_steps", "lr_decay_type")
    ),
    Rule(
        "training.lr_gamma",
        _is_by("step"),
        "only training.lr_scheduler_type=step reads it; set that, or leave it out",
    ),
)
"""Errors when a run config is made."""

WARNED = (
    Rule(
        "expansion",
        lambda run: METHODS.get(run.method).expands,
        "only method=control and method=stack read it",
        False,
    ),
    *(
        Rule(
            section,
            _is_read(section),
            f"only method={section} reads it",
            False,
        )
        for section in ("freeze", "kl")
    ),
    Rule(
        "peft",
        lambda run: run.adapters is not None,
        "peft.type names no adapters, nor does method=lora bring them",
        False,
    ),
    *(
        Rule(f"rehearsal.{name}", lambda run: run.rehearsal.enabled, f"only if {_REHEARSES}", False)
        for name in ("length", "loss", "temperature", "prompts", "batch_size", "cache_dir")
    ),
    Rule(
        "rehearsal.weight",
        lambda run: run.rehearsal.uses_kl,
        f"only if rehearsal.loss is kl, and {_REHEARSES}",
        False,
    ),
    Rule(
        "rehearsal.share",
        lambda run: run.rehearsal.num_sequences > 0,
        f"only if {_REHEARSES}",
        False,
    ),
    Rule(
        "rehearsal.num_sequences",
        lambda run: run.rehearsal.share > 0,
        f"only if {_REHEARSES}",
        False,
    ),
    Rule(
        "training.max_steps",
        lambda run: run.training.num_train_epochs is None,
        "training.num_train_epochs counts instead of it",
        False,
    ),
    Rule(
        "training.interpolator_learning_rate",
        _trains_interpolator,
        "no interpolator trains (expansion.train_alpha, or a token gate such as dlerp)",
        False,
    ),
    *(
        Rule(name, _measures, "data.learn and data.retain name no set", False)
        for name in (
            *("training.eval_steps", "training.per_device_eval_batch_size"),
            *("data.max_eval_samples", "data.max_eval_tokens"),
        )
    ),
    Rule(
        "training.remote_timeout",
        lambda run: run.training.remote_dir is not None,
        "training.remote_dir is not set",
        False,
    ),
    Rule(
        "training.remote_storage_options",
        _resumes_elsewhere,
        "neither training.remote_dir nor training.resume_from_checkpoint is elsewhere",
        False,
    ),
    Rule(
        "logging.project",
        lambda run: "wandb" in run.logging.report_to,
        "logging.report_to does not name wandb",
        False,
    ),
    Rule(
        "logging.run_name",
        lambda run: "wandb" in run.logging.report_to or bool(run.logging.integrations),
        "logging.report_to names no logger that shows it, such as wandb",
        False,
    ),
    Rule(
        "debug.profile_ranks",
        lambda run: run.debug.profile_steps is not None or run.debug.memory_snapshot,
        "neither debug.profile_steps nor debug.memory_snapshot is set",
        False,
    ),
)
"""Warnings as training begins."""

_ALONE = Rule(
    "parallel",
    # DeepSpeed holds even a single process's moments and weights.
    lambda run: run.parallel.way.by_deepspeed,
    "one process trains, which shares the model with none",
    False,
)


def refuse_unread(run: Any) -> None:
    """Refuse what is said and would not be read.

    Args:
        run: a run config.

    Raises:
        ConfigError: with the setting, its value, and what to do.
    """
    check_said(run, REFUSED, PRESETS.get(run.preset, {}))


def warn_of_unread(run: Any, processes: int) -> None:
    """Warn of what is said and would not be read.

    Args:
        run: a run config.
        processes: how many train.
    """
    rules = (*WARNED, _ALONE) if processes == 1 else WARNED
    check_said(run, rules, PRESETS.get(run.preset, {}))
