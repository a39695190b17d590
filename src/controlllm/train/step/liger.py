"""Liger's Triton kernels in norms, MLPs, rotary embeddings and the loss, for training on GPUs.

Liger's own `apply_liger_kernel_to_*` put functions and classes of their own into transformers'
modules, for every model of the process. Here the `forward` of single modules is bound anew, and
nothing outside the model changes. Classes, parameters and their names stay, so checkpoints and
sidecars are the same, copies of a block compute as it does, and any of it can be taken away again.

| kernel | in the place of |
|---|---|
| `rms_norm` | the RMSNorm modules of both branches, of the ends, and of queries and keys |
| `swiglu` | `silu(gate) * up` between the matrices of an MLP |
| `rope` | `apply_rotary_pos_emb`, which attention finds in its module's globals: it gets a copy |
| `fused_linear_cross_entropy` | `head.chunked_cross_entropy_sum` |

A module computes without its kernel where none can run: on a CPU, or without values.
"""

import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.losses import IGNORE_INDEX, cross_entropy_sum
from controlllm.evaluate import evaluating
from controlllm.train.config.training_config import TrainingConfig
from controlllm.train.step.head import chunked_cross_entropy_sum, head_inputs, hidden_states_of

__all__ = [
    "apply_liger_kernels",
    "check_liger_kernels",
    "fused_chunk",
    "fused_cross_entropy_sum",
    "require_liger",
    "without_liger_kernels",
]

log = logging.getLogger(__name__)

_ROTARY = "apply_rotary_pos_emb"
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
Forward = Callable[..., Any]


def require_liger(device: torch.device) -> None:
    """Check that Liger's kernels can run here, before anything is loaded.

    Raises:
        ConfigError: there is no GPU, or Liger or Triton is not installed.
    """
    if device.type != "cuda" and not _interpreted():
        raise ConfigError(
            f"training.use_liger_kernel=true needs a GPU, and the run is on {device}: Triton "
            "compiles for GPUs only. Leave it out here."
        )
    _operations()


def _operations() -> Any:
    try:
        return importlib.import_module("liger_kernel.ops")
    except ImportError as error:
        raise ConfigError(
            "training.use_liger_kernel=true needs liger-kernel and triton, which cannot be "
            f"imported ({error}): `pip install 'controlllm[liger]'`, or leave the setting out."
        ) from error


def apply_liger_kernels(model: nn.Module, training: TrainingConfig) -> dict[str, int]:
    """Let the modules of one model compute by the kernels that are on, in place.

    Call it on a model that is expanded already, and before it is sharded.

    Returns:
        How many modules each kernel computes.

    Raises:
        ConfigError: it is not known how the architecture computes these parts, or a kernel was
            asked for by name that it has no use for.
    """
    described: Any = model.config
    config: Any = described.get_text_config(decoder=True)
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise ConfigError(
            f"training.use_liger_kernel=true does not support model_type {config.model_type!r}; "
            f"it is for {', '.join(_FAMILIES)}. Leave it out."
        )
    silu = getattr(config, "hidden_act", None) in ("silu", "swish")
    counts = {name: 0 for name in training.liger_kernels if name != "fused_linear_cross_entropy"}
    for module in model.modules():
        kind = type(module)
        kernel, make = family.get(f"{kind.__module__}.{kind.__name__}", (None, None))
        if make is not None and kernel in counts and (kernel != "swiglu" or silu):
            _bind(module, make(kind.forward))
            counts[kernel] += 1
    unused = [name for name, count in counts.items() if not count]
    asked = [name for name, on in training.liger_kernel_config.items() if on]
    if named := [name for name in asked if name in unused]:
        raise ConfigError(
            f"training.liger_kernel_config turns on {named[0]!r}, but no module of this "
            f"{config.model_type} can use it; leave it out."
        )
    log.info("Liger kernels: %s", ", ".join(f"{name} in {n} modules" for name, n in counts.items()))
    return counts


def _bind(module: nn.Module, forward: Forward) -> None:
    if "forward" in vars(module) and not _is_bound(module):
        raise ConfigError(
            f"training.use_liger_kernel=true: the forward of a {type(module).__name__} was "
            "replaced already, as a device_map does; load the model without, or leave the kernels "
            "out."
        )
    # A bound method: a deep copy of the module gets one that is bound to the copy.
    vars(forward)["by_liger"] = True
    module.forward = MethodType(forward, module)


def _is_bound(module: nn.Module) -> bool:
    return hasattr(getattr(vars(module).get("forward"), "__func__", None), "by_liger")


@contextmanager
def without_liger_kernels(model: nn.Module) -> Iterator[None]:
    """In this context a model computes as transformers does."""
    bound = [
        (module, vars(module).pop("forward")) for module in model.modules() if _is_bound(module)
    ]
    try:
        yield
    finally:
        for module, forward in bound:
            module.forward = forward


def _interpreted() -> bool:
    """Whether Triton's interpreter runs kernels on the CPU, which is for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _can_run(tensor: Tensor) -> bool:
    place = tensor.device.type
    return tensor.dtype in _TYPES and (place == "cuda" or (place == "cpu" and _interpreted()))


@functools.cache
def _norm_forward(offset: float, casting: str) -> Forward:
    kernel = _operations().LigerRMSNormFunction

    def forward(self: Any, hidden_states: Tensor) -> Any:
        if not _can_run(hidden_states):
            return type(self).forward(self, hidden_states)
        eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
        # Not in place: a gradient that comes from a sum is also that of the other summand.
        return kernel.apply(hidden_states, self.weight, eps, offset, casting, False)

    return forward


def _mlp_forward(self: Any, x: Tensor) -> Any:
    if not _can_run(x):
        return type(self).forward(self, x)
    if hasattr(self, "gate_up_proj"):  # Phi's
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
    else:
        gate, up = self.gate_proj(x), self.up_proj(x)
    return self.down_proj(_operations().LigerSiLUMulFunction.apply(gate, up))


@functools.cache
def _with_rotary_kernel(forward: Any) -> Forward:
    """The same function of attention, in whose globals another one rotates."""
    if _ROTARY not in forward.__code__.co_names:
        raise ModelError(
            f"{forward.__qualname__} calls no {_ROTARY} in this version of transformers; set "
            "training.liger_kernel_config: {rope: false}."
        )
    plain, kernel = forward.__globals__[_ROTARY], _operations().LigerRopeFunction

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        if not _can_run(q):
            return plain(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        # It writes into what it gets, which selective checkpointing keeps to go on from.
        return kernel.apply(q.clone(), k.clone(), cos, sin, None, unsqueeze_dim)

    names = {**forward.__globals__, _ROTARY: rotate}
    other = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    other.__kwdefaults__ = forward.__kwdefaults__
    return functools.update_wrapper(other, forward)


def _family(
    prefix: str, offset: float = 0.0, casting: str = "llama", swiglu: bool = True
) -> dict[str, tuple[str, Callable[[Any], Forward]]]:
    """Class of transformers -> its kernel, and what makes a forward by it of the class's own.

    Args:
        prefix: of its classes, `FOLDER.NAME` with their folder in `transformers.models`.
        offset: what the norm adds to its weight.
        casting: `llama` rounds the normed values before the weight multiplies them, `gemma` after.
        swiglu: whether that is its MLP.
    """
    folder, _, name = prefix.partition(".")
    path = f"transformers.models.{folder}.modeling_{folder}.{name}"
    found: dict[str, tuple[str, Callable[[Any], Forward]]] = {
        f"{path}RMSNorm": ("rms_norm", lambda plain: _norm_forward(offset, casting)),
        f"{path}Attention": ("rope", _with_rotary_kernel),
    }
    return found | ({f"{path}MLP": ("swiglu", lambda plain: _mlp_forward)} if swiglu else {})


# Offset and casting are what transformers' own norms do.
_FAMILIES = {
    "llama": _family("llama.Llama"),
    "mistral": _family("mistral.Mistral"),
    "qwen2": _family("qwen2.Qwen2"),
    "qwen3": _family("qwen3.Qwen3"),
    "qwen3_moe": _family("qwen3_moe.Qwen3Moe", swiglu=False),
    "mixtral": _family("mixtral.Mixtral", swiglu=False),
    "phi3": _family("phi3.Phi3"),
    "olmo2": _family("olmo2.Olmo2", casting="gemma"),
    "gemma2": _family("gemma2.Gemma2", 1.0, "gemma", swiglu=False),
    "gemma3_text": _family("gemma3.Gemma3", 1.0, "gemma", swiglu=False),
}
"""By `model_type`."""


def fused_cross_entropy_sum(
    hidden_BTD: Tensor, model: PreTrainedModel, labels_BT: Tensor
) -> Tensor:
    """Sum of next-token cross-entropy in nats, as `head.chunked_cross_entropy_sum`."""
    hidden_ND, weight_VD, bias_V, targets_N = head_inputs(hidden_BTD, model, labels_BT)
    if not _can_run(hidden_ND) or not len(targets_N):  # The kernel fails on no positions.
        return chunked_cross_entropy_sum(hidden_BTD, model, labels_BT, max(len(targets_N), 1))
    if weight_VD.requires_grad and torch.is_grad_enabled():
        # It gives the head no gradient where the hidden states need none.
        hidden_ND = hidden_ND if hidden_ND.requires_grad else hidden_ND.requires_grad_()
    class_weights, z_loss, smoothing, cap, return_z_loss = None, 0.0, 0.0, None, False
    accumulate_in = torch.float32
    total: Tensor = _operations().LigerFusedLinearCrossEntropyFunction.apply(
        *(hidden_ND, weight_VD, targets_N, bias_V, class_weights, IGNORE_INDEX, z_loss, smoothing),
        *("sum", cap, return_z_loss, accumulate_in),
    )[0]
    return total


def fused_chunk(positions: int, vocabulary: int, width: int) -> int:
    """Positions whose logits the fused kernel has at a time: about as many numbers as its input.

    >>> fused_chunk(8192, vocabulary=128_256, width=4096)
    256
    """
    share = -(-positions // -(-vocabulary // width))
    return min(positions, 1 << max(share - 1, 0).bit_length())


def check_liger_kernels(model: PreTrainedModel, kernels: Iterable[str]) -> None:
    """Run a few tokens with and without kernels. Collective where the model is sharded.

    Raises:
        ModelError: they do not give the same.
    """
    ids = torch.arange(16, device=model.device)[None] % 7
    inputs = {"input_ids": ids, "use_cache": False}
    with evaluating(model):
        ours = model(**inputs).logits.float()
        with without_liger_kernels(model):
            plain = model(**inputs).logits.float()
        _compare("logits", ours, plain)
        if "fused_linear_cross_entropy" in kernels:
            loss = fused_cross_entropy_sum(hidden_states_of(model, inputs), model, ids)
            _compare("cross-entropy", loss, cross_entropy_sum(ours, ids)[0])


def _compare(what: str, ours: Tensor, plain: Tensor) -> None:
    error = ((ours - plain).norm() / plain.norm()).item()
    if not error < _TOLERANCE:
        raise ModelError(
            f"Liger's kernels change the {what} by {error:.1%}, more than rounding does; set "
            "training.use_liger_kernel=false, or find the kernel by switching them off one by one "
            "(training.liger_kernel_config)."
        )


_TOLERANCE = 0.05
"""Relative; bfloat16 keeps two to three digits, a norm without its offset has none."""
