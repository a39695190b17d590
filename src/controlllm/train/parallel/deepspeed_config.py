"""Setting DeepSpeed up: where it runs, the config of its engine, and the parts of ZeRO-3."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from controlllm.common.errors import ConfigError
from controlllm.common.registry import nearest_name
from controlllm.train.config.config_io import merge
from controlllm.train.config.run_config import RunConfig

__all__ = ["check_precision", "deepspeed_config", "prepare_deepspeed", "zero3_cutter"]

log = logging.getLogger(__name__)

SMALLEST = 2
"""Parameters of fewer numbers are never cut."""
_QUANTISED = (
    "zero_quantized_gradients",
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
)
_OWNED = {
    "train_batch_size": "training.per_device_train_batch_size",
    "train_micro_batch_size_per_gpu": "training.per_device_train_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "gradient_clipping": "training.max_grad_norm",
    "optimizer": "training.optim",
    "scheduler": "training.lr_scheduler_type",
    "bf16": "training.bf16",
    "fp16": "training.bf16",
    "torch_autocast": "training.bf16",
}
"""What the run says by a setting of its own."""
_SECTIONS = {
    *("activation_checkpointing", "aio", "autotuning", "comms_logger", "communication_data_type"),
    *("compression_training", "csv_monitor", "data_types", "dump_state", "flops_profiler"),
    *("memory_breakdown", "prescale_gradients", "sparse_gradients", "steps_per_print"),
    *("tensor_parallel", "tensorboard", "wall_clock_breakdown", "wandb", "zero_optimization"),
    *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
}
"""A section that is nearly one of these is a slip; any other name is left to DeepSpeed."""


def prepare_deepspeed(on_cpu: bool, local_rank: int) -> None:
    """Let DeepSpeed and accelerate know where they run; call it before either is set up.

    `on_cpu`: there is no accelerator, or it is not to be used.

    Raises:
        ConfigError: DeepSpeed is not installed.
    """
    os.environ.setdefault("LOCAL_RANK", str(local_rank))  # Slurm has another name for it.
    if on_cpu:
        # DeepSpeed chooses its device when it is imported.
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"parallel.strategy=zero2 and zero3 need DeepSpeed; it cannot be imported ({error}). "
            "pip install 'controlllm[deepspeed]', or take strategy=fsdp."
        ) from error
    if on_cpu:
        # Its collectives by shared memory would be compiled first, by one process, while the others
        # wait for a lock that a killed run leaves behind; gloo has them, too.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed calls them in each step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)
    environment = dict(os.environ)
    state = PartialState(cpu=on_cpu)
    # On a CPU it has written launcher's variables: those of a single process, if it found none.
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    # It would ask its launcher's variables, and knows of no DeepSpeed on a CPU.
    state.distributed_type = DistributedType.DEEPSPEED


def check_precision(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Check that an engine can compute with a model's weights.

    Raises:
        ConfigError: without mixed precision (`dtype`) one is not float32, which is all that
            DeepSpeed computes in then.
    """
    for name, parameter in model.named_parameters() if dtype is None else ():
        kind = parameter.dtype
        if kind.is_floating_point and kind != torch.float32:
            raise ConfigError(
                f"DeepSpeed computes in float32 here, and {name} is {str(kind).split('.')[-1]}; "
                "set training.bf16=true, or model.dtype=float32."
            )


def zero3_cutter(config: Mapping[str, Any]) -> Callable[[Sequence[nn.Parameter]], None]:
    """Make a function that cuts parameters over all processes, as this engine of ZeRO-3 expects.

    Returns:
        A function to be called on all processes with the same parameters, in any portions; the
        values of the first process count.
    """
    from deepspeed.runtime.zero import Init

    first: list[Any] = []

    def cut(parameters: Sequence[nn.Parameter]) -> None:
        if not parameters:
            return
        if first:
            first[0].convert_to_zero_parameters(param_list=parameters)
        else:
            Init(module=nn.ParameterList(parameters), config_dict_or_path=_without_auto(config))
            first.append(parameters[0])

    return cut


def _without_auto(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without what transformers fills in later."""
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if value != "auto"
    }


def deepspeed_config(run: RunConfig, micro_batches: int, on_cpu: bool = False) -> dict[str, Any]:
    """The settings of the engine: those that the run makes, and over them those of its config.

    Raises:
        ConfigError: `parallel.deepspeed` sets what the run has a setting of its own for, or what a
            CPU cannot do, or its file cannot be read.
    """
    training, parallel = run.training, run.parallel
    stage, bf16 = 3 if parallel.way.cuts_weights else 2, training.autocast_dtype is torch.bfloat16
    zero: dict[str, Any] = {"stage": stage}
    if parallel.cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    ours = {
        "train_micro_batch_size_per_gpu": training.per_device_train_batch_size,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": training.max_grad_norm,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }
    theirs = _read(parallel.deepspeed)
    _check_keys(theirs, bf16)
    merged = merge(ours, {key: value for key, value in theirs.items() if key not in _OWNED})
    if "zero_optimization" in theirs:
        _check_zero(merged["zero_optimization"], stage, on_cpu)
    return merged


def _check_keys(theirs: Mapping[str, Any], bf16: bool) -> None:
    """DeepSpeed itself passes over a section that it does not know."""
    agreed = {"bf16": {"enabled": bf16}, "fp16": {"enabled": False}}
    owned = [
        key
        for key in _OWNED
        if key in theirs and not _leaves_open(key, theirs[key]) and theirs[key] != agreed.get(key)
    ]
    if owned:
        settings = ", ".join(dict.fromkeys(_OWNED[key] for key in owned))
        raise ConfigError(
            f"parallel.deepspeed sets {', '.join(owned)}, which the run sets by {settings}; leave "
            "them out there, or write 'auto' for them."
        )
    for key in ("optimizer", "scheduler"):
        if isinstance(theirs.get(key), Mapping):
            name = theirs[key].get("type")
            log.info("parallel.deepspeed: instead of its %s %s, %s is used", key, name, _OWNED[key])
    for key in theirs.keys() - _SECTIONS - _OWNED.keys():
        near = nearest_name(key, _SECTIONS, likeness=0.8)
        if near is not None:
            raise ConfigError(
                f"parallel.deepspeed: DeepSpeed has no section {key!r}. Did you mean {near!r}?"
            )


def _leaves_open(key: str, section: Any) -> bool:
    """Whether a section says `auto` for all that it could decide, as transformers' examples do."""
    if not isinstance(section, Mapping):
        return bool(section == "auto")
    if key == "optimizer" and str(section.get("type")).lower() not in ("adam", "adamw"):
        return False
    if "enabled" in section:
        return bool(section["enabled"] == "auto")
    params = section.get("params")
    return isinstance(params, Mapping) and all(value == "auto" for value in params.values())


def _check_zero(zero: Any, stage: int, on_cpu: bool) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    if not isinstance(zero, Mapping):
        raise ConfigError(
            f"parallel.deepspeed: zero_optimization={zero!r} must be a mapping of settings."
        )
    given = {key: value for key, value in zero.items() if value != "auto"}
    try:
        DeepSpeedZeroConfig(**given)
    except ValueError as error:  # pydantic's, of many lines
        details: list[Any] = getattr(error, "errors", list)()
        where = ".".join(str(part) for part in details[0]["loc"]) if details else ""
        reason = details[0]["msg"] if details else str(error).splitlines()[0]
        near = nearest_name(where, DeepSpeedZeroConfig.model_fields)
        hint = f" Did you mean {near!r}?" if near is not None and near != where else ""
        raise ConfigError(
            f"parallel.deepspeed: zero_optimization.{where}: {reason}.{hint}"
        ) from error
    if given.get("stage", stage) != stage:
        raise ConfigError(
            f"parallel.deepspeed sets ZeRO stage {given['stage']}, and parallel.strategy is "
            f"zero{stage}; leave the stage out there."
        )
    quantised = [key for key in _QUANTISED if zero.get(key)]
    if quantised and on_cpu:
        raise ConfigError(
            f"parallel.deepspeed: {quantised[0]} needs a GPU; DeepSpeed has no such kernel for a "
            "CPU. Leave it out here."
        )
    threshold = zero.get("stage3_param_persistence_threshold", "auto")
    if threshold != "auto" and threshold < SMALLEST:
        raise ConfigError(
            f"parallel.deepspeed: stage3_param_persistence_threshold={threshold} would cut the "
            f"alphas of interpolators, which are read between steps; give at least {SMALLEST}."
        )


def _read(given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    if not isinstance(given, str):
        return dict(given or {})
    try:
        values = json.loads(Path(given).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"parallel.deepspeed={given} cannot be read ({error}); give the path of a JSON file."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"parallel.deepspeed={given} must hold a mapping of sections.")
    return values
