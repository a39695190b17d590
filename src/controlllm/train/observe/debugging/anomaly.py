"""The first module whose output or gradient is not finite.

Every module's output is looked at as it is computed, and its gradient as that comes back, so the
first bad one is the one where it went wrong, or the first after it. Whether its inputs and weights
were finite tells which.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from controlllm.common.errors import TrainingError
from controlllm.common.tensors import own_part
from controlllm.expansion.method.ends import ExpandedHead

__all__ = ["AnomalyHunt"]


class AnomalyHunt:
    """Checks all outputs and gradients of a model while it trains; evaluation is left alone."""

    def __init__(self, model: nn.Module, rank: int) -> None:
        self.rank = rank
        self.steps_done = self.micro_batch = 0
        self._model = model
        self._handles: list[RemovableHandle] = []

    def begin(self, step: int) -> None:
        """Training begins or goes on after so many steps."""
        self.after_step(step)
        self._handles.append(self._model.register_forward_pre_hook(self._next_micro_batch))
        for name, module in self._model.named_modules():
            # Where the base alone predicts, added tokens are forbidden: logits of -inf are right.
            forbids = isinstance(module, ExpandedHead)
            hook = partial(self._check_output, name or type(module).__name__, forbids)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def after_step(self, step: int) -> None:
        """So many steps are done."""
        self.steps_done, self.micro_batch = step, 0

    def check_weights(self) -> None:
        """Look at the gradients of weights, after the backward passes of a step.

        Raises:
            TrainingError: naming the first weight with a bad one.
        """
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None and not _finite(parameter.grad):
                self._fail(f"the gradient of the weight {name}")

    def close(self) -> None:
        """Remove all hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _next_micro_batch(self, module: nn.Module, args: Any) -> None:
        if module.training:
            self.micro_batch += 1

    def _check_output(
        self, name: str, forbids: bool, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        if not module.training:
            return
        for tensor in _tensors(output):
            if not _finite(tensor, or_forbidden=forbids):
                inputs = _state(all(map(_finite, _tensors([*args, *kwargs.values()]))))
                weights = _state(all(map(_finite, module.parameters())))
                self._fail(
                    f"the output of {name} ({type(module).__name__})",
                    f" Its inputs are {inputs}, its weights are {weights}.",
                )
            if tensor.requires_grad:
                tensor.register_hook(partial(self._check_gradient, name, type(module).__name__))

    def _check_gradient(self, name: str, kind: str, gradient: Tensor) -> None:
        if not _finite(gradient):
            self._fail(f"the gradient of the output of {name} ({kind})")

    def _fail(self, what: str, more: str = "") -> None:
        raise TrainingError(
            f"debug.anomaly: {what} is not finite, the first such in step {self.steps_done + 1}, "
            f"micro-batch {self.micro_batch}, on rank {self.rank}.{more} The weights were not "
            "changed by this step."
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    """The float tensors in a module's inputs or outputs; a model's output class is passed over."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


@torch.no_grad()
def _finite(tensor: Tensor, or_forbidden: bool = False) -> bool:
    values = own_part(tensor)
    if not values.is_floating_point():
        return True
    bad = values.isnan() | values.isposinf() if or_forbidden else ~values.isfinite()
    return not bool(bad.any())


def _state(finite: bool) -> str:
    return "finite" if finite else "not finite"
