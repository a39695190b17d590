"""The optional package bitsandbytes: linear layers in 8 or 4 bits, made, told apart and read.

| kind | a weight takes | scales |
|---|---|---|
| `bnb_int8` | 8 bits, evenly spaced (LLM.int8) | one of 32 bits for each row |
| `bnb_nf4` | 4 bits, at the quantiles of a normal distribution | one of 32 bits for 64 weights |
| `bnb_nf4_double` | the same | themselves in 8 bits, with 32 for each 256 of them |

Layers are known by their class, so that what holds none of them never imports the package.
"""

import copy
import importlib
import logging
from typing import TYPE_CHECKING, Any, Literal, get_args

from controlllm.common.errors import ModelError
from controlllm.common.quiet import require_package

if TYPE_CHECKING:  # The kinds are also read where nothing is computed, and torch takes seconds.
    import torch
    from torch import Tensor, nn

__all__ = [
    "BNB_KINDS",
    "BnbKind",
    "bnb_config",
    "bnb_kind",
    "bnb_linear",
    "bnb_weight",
    "packed_bytes",
    "settle_bnb_linear",
    "stored_bytes",
]

BnbKind = Literal["bnb_int8", "bnb_nf4", "bnb_nf4_double"]
BNB_KINDS: tuple[str, ...] = get_args(BnbKind)
"""Those that we make; others (fp4) are read."""

_BLOCK = 64
_SCALES_BLOCK = 256
_LOUD = "bitsandbytes.autograd._functions"


def bnb_config(kind: str, compute_dtype: "torch.dtype") -> Any:
    """The `BitsAndBytesConfig` with which `from_pretrained` quantises weights as it reads them.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    require_package("bitsandbytes", f"quantize_base={kind}")
    if kind == "bnb_int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=kind.endswith("_double"),
        bnb_4bit_compute_dtype=compute_dtype,
    )


def bnb_linear(linear: "nn.Linear", kind: str, compute_dtype: "torch.dtype") -> "nn.Module":
    """A quantised layer with the weight and the bias of `linear`, as `bnb_config` would load it.

    `linear` is not changed, and its bias is kept.
    """
    import torch

    nn_ = require_package("bitsandbytes", f"quantize_base={kind}").nn
    weight, has_bias = linear.weight.detach(), linear.bias is not None
    sizes = (linear.in_features, linear.out_features, has_bias)
    with torch.device("meta"):
        if kind == "bnb_int8":
            # The threshold is transformers' default.
            layer = nn_.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0)
        else:
            double = kind.endswith("_double")
            layer = nn_.Linear4bit(*sizes, compute_dtype, double, quant_type="nf4")
    if kind == "bnb_int8":
        layer.weight = nn_.Int8Params(weight.cpu(), requires_grad=False).to(weight.device)
    else:
        settings = {"quant_type": "nf4", "compress_statistics": double, "module": layer}
        layer.weight = nn_.Params4bit(weight, False, **settings).to(weight.device)
    if has_bias:
        layer.bias = linear.bias
    layer.requires_grad_(False)
    layer.train(linear.training)
    settle_bnb_linear(layer)
    made: nn.Module = layer
    return made


def bnb_kind(module: "nn.Module") -> str | None:
    """How a linear layer is quantised by bitsandbytes; None if it is not.

    >>> from torch import nn
    >>> bnb_kind(nn.Linear(2, 2)) is None
    True
    """
    names = {
        base.__name__ for base in type(module).__mro__ if base.__module__.startswith("bitsandbytes")
    }
    if "Linear8bitLt" in names:
        return "bnb_int8"
    if "Linear4bit" not in names:
        return None
    state = _quant_state(module)
    return f"bnb_{state.quant_type}" + ("_double" if state.nested else "")


def bnb_weight(module: "nn.Module") -> "Tensor":
    """The weight that a quantised layer computes with, (out_features, in_features).

    In float32 of 8 bits, in the type that was quantised of 4.
    """
    weight: Any = module.weight
    if bnb_kind(module) == "bnb_int8":
        return weight.data.float() * (_row_scales(module).float().view(-1, 1) / 127)
    settle_bnb_linear(module)
    functional = importlib.import_module("bitsandbytes.functional")
    dequantised: Tensor = functional.dequantize_4bit(weight.data.view(-1, 1), _quant_state(module))
    return dequantised


def settle_bnb_linear(module: Any, compute_dtype: "torch.dtype | None" = None) -> None:
    """Prepare a quantised layer so that gradients can flow through it, in place.

    * On CPUs with AVX512-BF16 an evaluation would lay 4-bit weights out anew, with rounded scales
      (and fail where rows are no multiple of 32); through those no gradient comes. They stay as
      they are, and what was laid out so is put back.
    * An 8-bit layer would log with each product that inputs are rounded.

    Args:
        module: a layer of bitsandbytes.
        compute_dtype: what a 4-bit layer shall compute in; None leaves it.

    Raises:
        ModelError: this CPU's kernel does not compute with the weights that were stored.
    """
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False
        if getattr(_quant_state(module), "packing_format_for_cpu", False):
            module.state_dict()  # which puts the layout back, as it is the one that is saved
        _check_kernel(module)
        if compute_dtype is not None:
            module.compute_dtype, module.compute_type_is_set = compute_dtype, True
    else:
        logging.getLogger(_LOUD).setLevel(logging.ERROR)


def _check_kernel(module: Any) -> None:
    """Refuse rows that bitsandbytes' kernel for CPUs reads with the scales of other weights.

    Blocks go over the ends of rows, and 0.50.2's loses count there for some lengths. Read as one
    row, the same weights come out right.
    """
    import torch

    weight, state = module.weight.data, _quant_state(module)
    if weight.device.type != "cpu" or module.in_features % state.blocksize == 0:
        return
    functional = importlib.import_module("bitsandbytes.functional")
    flat = copy.copy(state)
    flat.shape = torch.Size((1, module.in_features * module.out_features))
    rows = functional.dequantize_4bit(weight.view(-1, 1), state)
    if not torch.equal(rows.reshape(-1), functional.dequantize_4bit(weight.view(-1, 1), flat)[0]):
        raise ModelError(
            f"bitsandbytes computes 4-bit rows of {module.in_features} weights wrongly on this CPU "
            f"(blocks of {state.blocksize} go over their ends). Quantise this base otherwise: "
            "bnb_int8, or model.quantize_base=nf4; or use a GPU."
        )


def stored_bytes(module: "nn.Module") -> int:
    """Bytes of a quantised layer's codes and scales."""
    weight: Any = module.weight
    if bnb_kind(module) == "bnb_int8":
        return int(weight.data.nbytes + _row_scales(module).nbytes)
    state = _quant_state(module)
    tensors = [weight.data, state.absmax, state.code]
    if state.nested:
        tensors += [state.state2.absmax, state.state2.code, state.offset]
    return sum(tensor.nbytes for tensor in tensors)


def packed_bytes(rows: int, columns: int, kind: str) -> int:
    """Bytes that `stored_bytes` will count for a matrix.

    >>> packed_bytes(64, 64, "bnb_int8"), packed_bytes(64, 64, "bnb_nf4")
    (4352, 2368)
    """
    if kind == "bnb_int8":
        return rows * columns + 4 * rows
    codes, scales = -(-rows * columns // 2), -(-rows * columns // _BLOCK)
    table = 16 * 4
    if kind == "bnb_nf4":
        return codes + 4 * scales + table
    return codes + scales + 4 * -(-scales // _SCALES_BLOCK) + table + 256 * 4 + 4


def _row_scales(module: Any) -> "Tensor":
    """Of an 8-bit layer; they move from the weight to the layer's state when it first runs."""
    scales: Tensor | None = getattr(module.weight, "SCB", None)
    return module.state.SCB if scales is None else scales


def _quant_state(module: Any) -> Any:
    """Of a 4-bit layer; the weight has none where it was gathered from several processes."""
    state = getattr(module.weight, "quant_state", None)
    return state if state is not None else module.quant_state
