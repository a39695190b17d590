"""Bases that come quantised: which layers are, what they compute with, and copies that train.

| quantised by | layers | their weight |
|---|---|---|
| bitsandbytes (`BitsAndBytesConfig`) | `Linear8bitLt`, `Linear4bit` | `common.bitsandbytes` |
| torchao (`TorchAoConfig`) | linear ones with a tensor class of torchao | its `dequantize()` |
| `model.quantize_base` of a run | layers with `kind` and a method `dequantised()` | that |

Neither package is imported here. Anything else that is packed is refused.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from controlllm.common.errors import ModelError
from controlllm.common.packages.bitsandbytes import bnb_kind, bnb_weight, settle_bnb_linear

__all__ = [
    "full_weight",
    "parameter_count",
    "quantised_kind",
    "quantised_layers",
    "refuse_unreadable",
    "settle",
    "trainable_twin",
]


def quantised_kind(module: nn.Module) -> str | None:
    """How a layer's weight is quantised, such as `bnb_nf4` or `torchao Int8Tensor`; None if not.

    >>> quantised_kind(nn.Linear(2, 2)) is None
    True
    """
    weight = module._parameters.get("weight")
    if weight is None:
        return None
    if type(weight).__module__.startswith("torchao."):
        return f"torchao {type(weight).__name__}"
    if hasattr(module, "dequantised"):
        return str(module.kind)
    return bnb_kind(module)


def quantised_layers(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All quantised layers of a model with their names."""
    for name, module in root.named_modules():
        if quantised_kind(module) is not None:
            yield name, module


def full_weight(layer: Any) -> Tensor:
    """The weight that a quantised layer computes with, in the shape that it had before.

    Raises:
        ModelError: torchao has no way back from this tensor class.
    """
    kind = quantised_kind(layer)
    if hasattr(layer, "dequantised"):
        mine: Tensor = layer.dequantised()
        return mine
    if kind is not None and kind.startswith("torchao "):
        try:
            values: Tensor = layer.weight.dequantize()
            return values.detach()
        except (NotImplementedError, AttributeError, RuntimeError) as error:
            raise ModelError(
                f"A weight of {kind} cannot be dequantised here ({error}); load the "
                "base unquantised, or quantised otherwise."
            ) from error
    values = bnb_weight(layer)
    return values.T.contiguous() if _is_conv1d(layer) else values


@torch.no_grad()
def trainable_twin(module: nn.Module) -> nn.Module:
    """A copy in which every weight is of floating point and trains.

    Quantised layers become the plain ones that they were, with the numbers they compute with, in
    the float type of what is not quantised beside them. Configs are shared: a changed config
    reaches both.

    Raises:
        ModelError: a weight cannot be turned back.
    """
    kept: dict[int, Any] = {
        id(m.config): m.config for m in module.modules() if hasattr(m, "config")
    }
    layers = [layer for _, layer in quantised_layers(module)]
    packed = {id(layer.weight) for layer in layers}
    plain = (p for p in module.parameters() if p.is_floating_point() and id(p) not in packed)
    like = next(plain, None)
    for layer in layers:
        kept[id(layer)] = _plain_layer(layer, None if like is None else like.dtype)
    twin = copy.deepcopy(module, memo=kept)
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return twin


def _plain_layer(layer: Any, dtype: torch.dtype | None) -> nn.Module:
    """The layer as it was before it was quantised, but for what that rounded."""
    weight = full_weight(layer)
    weight = weight.to(dtype or weight.dtype, copy=True)
    plain: Any
    with torch.device("meta"):
        if _is_conv1d(layer):
            plain = layer.source_cls(layer.out_features, layer.in_features)
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    plain.weight = nn.Parameter(weight)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().to(weight.dtype, copy=True))
    plain.train(layer.training)
    made: nn.Module = plain
    return made


def _is_conv1d(layer: nn.Module) -> bool:
    """Whether it was one of GPT-2's transposed layers."""
    return getattr(getattr(layer, "source_cls", None), "__name__", "") == "Conv1D"


def settle(root: nn.Module) -> None:
    """Prepare quantised layers so that gradients can flow through them, in place."""
    for _, layer in quantised_layers(root):
        if bnb_kind(layer) is not None:
            settle_bnb_linear(layer)


def refuse_unreadable(model: nn.Module, blocks: nn.Module) -> None:
    """Check that every weight of the blocks is a number, or can be turned into one (ModelError)."""
    known = {id(layer.weight) for _, layer in quantised_layers(blocks)}
    method = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    method = getattr(getattr(method, "quant_method", None), "value", None)
    for name, tensor in _tensors(blocks, buffers=method not in (None, "bitsandbytes", "torchao")):
        packed = tensor.element_size() == 1 or not tensor.is_floating_point()
        if packed and id(tensor) not in known:
            by = f" by {method}" if method else ""
            raise ModelError(
                f"The base is quantised{by} ({name} is {tensor.dtype}), and a copy of packed "
                "weights cannot be trained. Load it unquantised, or by bitsandbytes "
                "(BitsAndBytesConfig) or torchao (TorchAoConfig)."
            )


def _tensors(blocks: nn.Module, buffers: bool) -> Iterator[tuple[str, Tensor]]:
    """Parameters; and matrices among the buffers, where some methods keep their codes."""
    yield from blocks.named_parameters()
    if buffers:
        for name, buffer in blocks.named_buffers():
            if buffer.ndim >= 2 and buffer.dtype is not torch.bool:
                yield name, buffer


def parameter_count(model: nn.Module) -> int:
    """Numbers of a model; of a quantised weight those that it stands for."""
    layers = {id(layer.weight): layer for _, layer in quantised_layers(model)}
    total = 0
    for parameter in model.parameters():
        layer: Any = layers.get(id(parameter))
        total += parameter.numel() if layer is None else layer.in_features * layer.out_features
    return total
