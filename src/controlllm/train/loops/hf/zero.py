"""The last stage under ZeRO: DeepSpeed's engine takes model and optimizer, in parts.

| strategy | in parts |
|---|---|
| `zero2` | gradients, float32 weights and moments of what trains |
| `zero3` | and all weights, frozen ones too, gathered while they compute |

A checkpoint is the one that every other strategy writes: tensors by the names of parameters. So it
is resumed by FSDP, by one process, or by ZeRO on another number of processes.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from controlllm.checkpoint import fill_tensors, trained_tensors
from controlllm.checkpoint.training.optimizer import (
    group_settings,
    make_optimizer_state,
    restore_groups,
)
from controlllm.checkpoint.training.saved import OPTIMIZER_PREFIX
from controlllm.common.tensors import whole, whole_shape
from controlllm.train.parallel.storage import Storage
from controlllm.train.setup.stages import Ready
from controlllm.train.step.optim import make_scheduler

__all__ = ["ZeroStorage", "with_engine"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


def with_engine(ready: Ready, engine: Any) -> Ready:
    """Put DeepSpeed's engine in the place of model and optimizer.

    Raises:
        ModelError: the model does not compute as the run relies on.
    """
    storage = ZeroStorage(engine, ready.storage)
    ready = replace(ready, loss=ready.loss.called_by(engine), storage=storage)
    if storage.optimizer is not ready.optimizer:  # For offload it has one of its own.
        scheduler = make_scheduler(storage.optimizer, ready.run.training, ready.total_steps)
        ready = replace(ready, optimizer=storage.optimizer, scheduler=scheduler)
    ready.check_model()
    return ready


class ZeroStorage(Storage):
    """The trained state of an engine.

    To be saved, each tensor is put together on all processes, one after the other, and kept by one
    of them. To be put back, it is read by all, some at a time. `storage` is the model's from before
    it became the engine's.
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
                tensor = whole(parameter)  # such as a fixed alpha
                if mine:
                    trained[name] = tensor.detach().to("cpu", torch.float32, copy=True)
                continue
            parts = {"": safe_get_full_fp32_param(parameter)}
            if steps is not None:
                parts |= {k: safe_get_full_optimizer_state(parameter, k) for k in _MOMENTS}
            if not mine:
                continue
            for key, part in parts.items():
                tensor = part.detach().to("cpu", copy=True).view(whole_shape(parameter))
                if key:
                    moments[self._moment(parameter, key)] = tensor
                else:
                    trained[name] = tensor
            if steps is not None:
                moments[self._moment(parameter, "step")] = torch.tensor(float(steps))
        return trained, moments, {"groups": group_settings(self.optimizer), "values": {}}

    def fill(self, checkpoint: Path, rest: dict[str, Any]) -> None:
        """As `Storage.fill`."""
        self._make_state()
        read: dict[str, Tensor] = {}
        for name, parameter in self._parameters():
            shape = whole_shape(parameter)
            read[name] = torch.empty(shape)
            if parameter.requires_grad:
                read |= {self._moment(parameter, key): torch.zeros(shape) for key in _MOMENTS}
                read[self._moment(parameter, "step")] = torch.zeros(())
        fill_tensors(checkpoint, read, self.ranks)
        for name, parameter in self._parameters():
            self._put(parameter, read[name], None)
            if parameter.requires_grad:
                for key in _MOMENTS:
                    self._put(parameter, read[self._moment(parameter, key)], key)
        steps = max(v.item() for k, v in read.items() if k.endswith("/step"))
        for state in self.optimizer.state.values():
            step = state["step"]
            state["step"] = step.fill_(steps) if isinstance(step, Tensor) else int(steps)
        # After `_make_state`, which leaves the rates as they were.
        restore_groups(self.optimizer, rest["groups"])
        if not self.stage3:
            self.zero.update_lp_params()

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What a checkpoint holds, by its name there."""
        for name, tensor in trained_tensors(self.model).items():
            assert isinstance(tensor, nn.Parameter)
            yield name, tensor

    def _moment(self, parameter: nn.Parameter, key: str) -> str:
        """How one of the optimizer's tensors of a parameter is called in a checkpoint."""
        return f"{OPTIMIZER_PREFIX}{self._names[parameter]}/{key}"

    @torch.no_grad()
    def _put(self, parameter: nn.Parameter, whole: Tensor, key: str | None) -> None:
        """Put back a weight (key None), also where the model computes with it, or a moment."""
        from deepspeed import utils
        from deepspeed.runtime.zero import GatheredParameters

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
            with GatheredParameters([parameter], modifier_rank=0, enabled=self.stage3):
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
