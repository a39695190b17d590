"""DeepSpeed's ZeRO: the config of an engine, and the trained state that it holds in parts.

| strategy | in parts | config |
|---|---|---|
| `zero2` | gradients, float32 weights and moments of what trains | `stage: 2` |
| `zero3` | and all weights, frozen ones too, gathered while they compute | `stage: 3` |

A checkpoint is the one that every other strategy writes: tensors by the names of parameters. So it
is resumed by FSDP, by one process, or by ZeRO on another number of processes.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from controlllm.checkpoint.optimizer import PREFIX, make_optimizer_state
from controlllm.checkpoint.shards import fill_tensors
from controlllm.checkpoint.tensors import trained_tensors
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.train.config import RunConfig
from controlllm.train.storage import Storage

__all__ = ["ZeroStorage", "check_precision", "deepspeed_config", "prepare_deepspeed"]

SMALLEST = 2
"""Parameters of fewer numbers are never cut."""
_QUANTISED = (
    "zero_quantized_gradients",
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
)
_MOMENTS = ("exp_avg", "exp_avg_sq")
_OWNED = {
    "train_batch_size": "training.per_device_train_batch_size",
    "train_micro_batch_size_per_gpu": "training.per_device_train_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "gradient_clipping": "training.max_grad_norm",
    "optimizer": "training.optimizer",
    "scheduler": "training.lr_scheduler_type",
    "bf16": "training.mixed_precision",
    "fp16": "training.mixed_precision",
    "torch_autocast": "training.mixed_precision",
}
"""What the run says by a setting of its own."""


def prepare_deepspeed(on_cpu: bool, local_rank: int) -> None:
    """Let DeepSpeed and accelerate know where they run; call it before either is set up.

    Args:
        on_cpu: there is no accelerator, or it is not to be used.
        local_rank: this process among those of its machine.

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
    # Of each step anew; DeepSpeed's affair.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)
    state = PartialState(cpu=on_cpu)
    # It would ask its launcher's variables, and knows of no DeepSpeed on a CPU.
    state.distributed_type = DistributedType.DEEPSPEED


def check_precision(model: nn.Module, mixed_precision: str) -> None:
    """Refuse weights in few bits that the engine would not compute in.

    Raises:
        ConfigError: without mixed precision DeepSpeed takes float32 only.
    """
    wrong = [
        (name, parameter.dtype)
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and parameter.dtype != torch.float32
    ]
    if wrong and mixed_precision == "no":
        name, dtype = wrong[0]
        raise ConfigError(
            f"DeepSpeed computes in float32 here, and {name} is {str(dtype).split('.')[-1]}; set "
            "training.mixed_precision=bf16, or model.dtype=float32."
        )


def deepspeed_config(run: RunConfig, micro_batches: int, on_cpu: bool = False) -> dict[str, Any]:
    """The settings of the engine: those that the run makes, and over them those of its config.

    Args:
        run: the run config.
        micro_batches: of an optimizer step on each process.
        on_cpu: there is no accelerator, or it is not to be used.

    Raises:
        ConfigError: `parallel.deepspeed` sets what the run has a setting of its own for, or what a
            CPU cannot do, or its file cannot be read.
    """
    training, parallel = run.training, run.parallel
    stage = int(parallel.strategy.removeprefix("zero"))
    zero: dict[str, Any] = {"stage": stage}
    if parallel.cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    ours = {
        "train_micro_batch_size_per_gpu": training.per_device_train_batch_size,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": training.max_grad_norm,
        "bf16": {"enabled": training.mixed_precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }
    theirs = _read(parallel.deepspeed)
    for key, setting in _OWNED.items():
        if theirs.get(key, "auto") != "auto":
            raise ConfigError(
                f"parallel.deepspeed sets {key!r}, which is what {setting} of the run says; leave "
                "it out there (or write 'auto')."
            )
    given = {key: value for key, value in theirs.items() if key not in _OWNED}
    merged = _laid_over(ours, given)
    _check_zero(merged["zero_optimization"], stage, on_cpu)
    return merged


def _check_zero(zero: Mapping[str, Any], stage: int, on_cpu: bool) -> None:
    if zero["stage"] != stage:
        raise ConfigError(
            f"parallel.deepspeed sets ZeRO stage {zero['stage']}, and parallel.strategy is "
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
    if isinstance(given, str):
        try:
            return dict(json.loads(Path(given).read_text()))
        except (OSError, ValueError) as error:
            raise ConfigError(f"parallel.deepspeed={given} cannot be read: {error}") from error
    return dict(given or {})


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[key] = _laid_over(inner, value) if both else value  # type: ignore[arg-type]
    return merged


class ZeroStorage(Storage):
    """The trained state of an engine.

    To be saved, each tensor is put together on all processes, one after the other, and kept by one
    of them. To be put back, it is read by all, some at a time.

    Args:
        engine: DeepSpeed's.
        storage: of the model before it became the engine's.
    """

    def __init__(self, engine: Any, storage: Storage) -> None:
        super().__init__(storage.model, engine.optimizer.optimizer, storage.ranks)
        self.zero = engine.optimizer
        self._names = {parameter: name for name, parameter in self.model.named_parameters()}
        self.stage3 = engine.zero_optimization_stage() == 3

    def read(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """As `Storage.read`; each process gets some of the tensors, whole, on the CPU. Collective.

        Names of parameters are asked for by all of them together.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        trained: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        steps = self._steps()
        if steps is not None:
            self._link_state()
        for place, (name, parameter) in enumerate(self._parameters()):
            mine = place % self.ranks.world_size == self.ranks.rank
            if not parameter.requires_grad:
                tensor = self._frozen(parameter)
                if mine:
                    trained[name] = tensor
                continue
            parts = {"": safe_get_full_fp32_param(parameter)}
            if steps is not None:
                parts |= {k: safe_get_full_optimizer_state(parameter, k) for k in _MOMENTS}
            if not mine:
                continue
            for key, part in parts.items():
                whole = part.detach().to("cpu", copy=True).view(self._shape(parameter))
                if key:
                    moments[self._moment(parameter, key)] = whole
                else:
                    trained[name] = whole
            if steps is not None:
                moments[self._moment(parameter, "step")] = torch.tensor(float(steps))
        groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        return trained, moments, {"groups": groups, "values": {}}

    def fill(self, checkpoint: Path, rest: dict[str, Any]) -> None:
        """As `Storage.fill`."""
        if len(rest["groups"]) != len(self.optimizer.param_groups):
            raise CheckpointError(
                f"{checkpoint}: its optimizer has {len(rest['groups'])} groups of parameters, this "
                f"one {len(self.optimizer.param_groups)}; set the run up as it was when it was "
                "saved."
            )
        self._make_state()
        whole: dict[str, Tensor] = {}
        for name, parameter in self._parameters():
            shape = self._shape(parameter)
            whole[name] = torch.empty(shape)
            if parameter.requires_grad:
                whole |= {self._moment(parameter, key): torch.zeros(shape) for key in _MOMENTS}
                whole[self._moment(parameter, "step")] = torch.zeros(())
        fill_tensors(checkpoint, whole, self.ranks)
        for name, parameter in self._parameters():
            self._put(parameter, whole[name], None)
            if parameter.requires_grad:
                for key in _MOMENTS:
                    self._put(parameter, whole[self._moment(parameter, key)], key)
        self._set_steps(max(v.item() for k, v in whole.items() if k.endswith("/step")))
        for group, settings in zip(self.optimizer.param_groups, rest["groups"], strict=True):
            group.update(settings)
        if not self.stage3:
            self.zero.update_lp_params()

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What a checkpoint holds, by its name there."""
        for name, tensor in trained_tensors(self.model).items():
            assert isinstance(tensor, nn.Parameter)
            yield name, tensor

    def _moment(self, parameter: nn.Parameter, key: str) -> str:
        """How one of the optimizer's tensors of a parameter is called in a checkpoint."""
        return f"{PREFIX}{self._names[parameter]}/{key}"

    def _shape(self, parameter: nn.Parameter) -> torch.Size:
        """The shape of the whole; under ZeRO-3 a parameter that is not in use has no elements."""
        shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
        return shape

    def _frozen(self, parameter: nn.Parameter) -> Tensor:
        """A parameter of a checkpoint that does not train, as a fixed alpha. Collective."""
        with self._gathered(parameter):
            return parameter.detach().to("cpu", torch.float32, copy=True)

    def _gathered(self, parameter: nn.Parameter, writer: int | None = None) -> Any:
        from deepspeed.runtime.zero import GatheredParameters

        return GatheredParameters([parameter], modifier_rank=writer, enabled=self.stage3)

    @torch.no_grad()
    def _put(self, parameter: nn.Parameter, whole: Tensor, key: str | None) -> None:
        """Put back a weight (key None), also where the model computes with it, or a moment."""
        from deepspeed import utils

        if parameter.requires_grad and self.stage3:
            part = (
                utils.safe_get_local_fp32_param(parameter)
                if key is None
                else utils.safe_get_local_optimizer_state(parameter, key)
            )
            part.copy_(self._own_part(whole, part.numel()).view_as(part))
        elif parameter.requires_grad and key is None:
            utils.safe_set_full_fp32_param(parameter, whole.to(parameter.device))
        elif parameter.requires_grad:
            utils.safe_set_full_optimizer_state(parameter, whole.to(parameter.device), key)
        if key is None:
            with self._gathered(parameter, writer=0):
                parameter.copy_(whole)

    def _own_part(self, whole: Tensor, size: int) -> Tensor:
        """This process's part of a flat tensor; what the last ones have beyond its end is 0."""
        start = min(size * self.ranks.rank, whole.numel())
        part = whole.flatten()[start : start + size]
        return torch.nn.functional.pad(part, (0, size - part.numel()))

    def _make_state(self) -> None:
        """Moments of a fresh optimizer, so that they can be filled."""
        if self.stage3:  # Its optimizer has parameters only while it steps.
            self.zero._set_fp32_optimizer_param_groups()
        make_optimizer_state(self.optimizer)
        if self.stage3:
            self.zero._clear_fp32_optimizer_param_groups()
        self._link_state()

    def _link_state(self) -> None:
        """Let ZeRO-2 find moments by parameter: it looks once, when only one group has any."""
        if not self.stage3:
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()

    def _steps(self) -> float | None:
        """Steps of the optimizer so far; None before the first."""
        steps = [state["step"] for state in self.optimizer.state.values() if "step" in state]
        return float(steps[0]) if steps else None

    def _set_steps(self, steps: float) -> None:
        for state in self.optimizer.state.values():
            step = state["step"]
            state["step"] = step.fill_(steps) if isinstance(step, Tensor) else int(steps)
