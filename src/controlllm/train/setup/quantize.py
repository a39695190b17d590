"""A frozen base in 8 or 4 bits: less memory for what does not train.

```
frozen linear layer --> torchao quantises its weight --> packed rows --> `QuantisedLinear`
```
Kinds that begin with `bnb_` are layers of bitsandbytes (`common.bitsandbytes`): where a run loads
its base from files they are quantised as they are read, here only those of a model in memory.
"""

import logging
from collections.abc import Iterator

import torch
from torch import nn

from controlllm.common.errors import ConfigError
from controlllm.common.packages.bitsandbytes import (
    bnb_linear,
    settle_bnb_linear,
    stored_bytes,
)
from controlllm.common.packages.quantizers import QUANTIZERS
from controlllm.expansion import (
    ControlLLMForCausalLM,
    ExpandedBlock,
    decoder_blocks,
    quantised_kind,
    quantised_layers,
)
from controlllm.expansion.files.fingerprint import remember_fingerprint
from controlllm.expansion.files.sidecar import base_fingerprint
from controlllm.train.config.compatibility import check_quantised
from controlllm.train.config.parallel_config import ParallelConfig
from controlllm.train.setup.quantised_linear import QuantisedLinear

__all__ = [
    "check_shared",
    "frozen_linears",
    "quantise_by_bnb",
    "quantize_base",
]

log = logging.getLogger(__name__)


def quantize_base(model: nn.Module, kind: str) -> None:
    """Quantise the linear layers of an expanded model's frozen blocks, in place.

    Expanded blocks, interpolators, embeddings, norms and the head stay as they are. Which base it
    is (its fingerprint) is noted before.

    Args:
        model: an expanded model in one piece, not in parts on several processes.
        kind: `int8`, `nf4`, or one of bitsandbytes (`quantise_by_bnb`).

    Raises:
        ConfigError: the package is not installed, or there is no frozen linear layer.
    """
    if QUANTIZERS.get(kind).at_load and isinstance(model, ControlLLMForCausalLM):
        quantise_by_bnb(model, kind, model.dtype)
        return
    if known := sorted({str(quantised_kind(layer)) for _, layer in quantised_layers(model)}):
        raise ConfigError(
            f"model.quantize_base={kind}, but this base is {', '.join(known)} already; load it "
            "unquantised, or leave the setting out."
        )
    layers = list(frozen_linears(model)) if isinstance(model, ControlLLMForCausalLM) else []
    if not layers or not isinstance(model, ControlLLMForCausalLM):
        raise _nothing_to_quantise(kind)
    base_fingerprint(model)
    model.config.base["quantised"] = [kind]
    before = after = 0
    for parent, name, linear in layers:
        quantised = QuantisedLinear(linear, kind)
        setattr(parent, name, quantised)
        before, after = before + linear.weight.nbytes, after + quantised.weight.nbytes
    log.info(
        "The base's frozen blocks in %s: %d linear layers, %s bytes instead of %s",
        *(kind, len(layers), f"{after:,}", f"{before:,}"),
    )


def quantise_by_bnb(model: nn.Module, kind: str, compute_dtype: torch.dtype) -> None:
    """Quantise a base by bitsandbytes, in place; layers that were loaded so stay as they are.

    Where it came with weights in full, its linear layers in blocks become the same as those that
    `from_pretrained` would have made; of an expanded model, those of the frozen blocks.

    Args:
        model: expanded or not.
        kind: one of `QUANTIZERS` that quantises as a base is loaded.
        compute_dtype: what 4-bit layers shall compute in.

    Raises:
        ConfigError: bitsandbytes is not installed, or no layer can be quantised, or some are
            quantised in another way already.
    """
    layers = [layer for _, layer in quantised_layers(model)]
    if others := sorted({str(quantised_kind(layer)) for layer in layers} - {kind}):
        raise ConfigError(
            f"model.quantize_base={kind}, but this base is {', '.join(others)} already; leave the "
            "setting out."
        )
    if not layers:
        if isinstance(model, ControlLLMForCausalLM):
            found = list(frozen_linears(model))
        else:
            found = list(_linears(decoder_blocks(model)))
        if not found:
            raise _nothing_to_quantise(kind)
        if isinstance(model, ControlLLMForCausalLM):
            base_fingerprint(model)
        else:
            remember_fingerprint(model)
        for parent, name, linear in found:
            setattr(parent, name, bnb_linear(linear, kind, compute_dtype))
        layers = [layer for _, layer in quantised_layers(model)]
    for layer in layers:
        settle_bnb_linear(layer, compute_dtype)
    log.info(
        "The base in %s: %d linear layers, %s bytes",
        *(kind, len(layers), f"{sum(map(stored_bytes, layers)):,}"),
    )


def check_shared(model: nn.Module, parallel: ParallelConfig | None) -> None:
    """Refuse a quantised base that a strategy cannot share; note which base it is before it does.

    Args:
        model: the model that will train, in one piece.
        parallel: how processes will share it; None for one process.

    Raises:
        ConfigError: it cannot.
    """
    kinds = {str(quantised_kind(layer)) for _, layer in quantised_layers(model)}
    if not kinds:
        return
    if isinstance(model, ControlLLMForCausalLM):
        base_fingerprint(model)
        model.config.base["quantised"] = sorted(kinds)
    if parallel is None:
        return
    if parallel.tensor_size > 1:
        raise ConfigError(
            f"The base is quantised as {', '.join(sorted(kinds))}, and parallel.tensor_size="
            f"{parallel.tensor_size} would cut its packed rows; set it to 1, or load the base "
            "unquantised."
        )
    check_quantised(kinds, parallel.strategy)


def _nothing_to_quantise(kind: str) -> ConfigError:
    return ConfigError(
        f"model.quantize_base={kind}, but the model has no frozen linear layer in a block; "
        "leave it out, or freeze the blocks (expansion.freeze)."
    )


def _linears(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Plain linear layers, where they hang, and their names there."""
    for parent in list(root.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear:
                yield parent, name, module


def frozen_linears(model: ControlLLMForCausalLM) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """What is quantised: each linear layer of a frozen block, where it hangs, and its name there.

    Not what only looks like one (a subclass, GPT-2's `Conv1D`, stacked experts).
    """
    for block in decoder_blocks(model):
        frozen = block.pretrained if isinstance(block, ExpandedBlock) else block
        for parent in list(frozen.modules()):
            for name, module in list(parent.named_children()):
                if type(module) is nn.Linear and not module.weight.requires_grad:
                    yield parent, name, module
