"""A frozen base in 8 or 4 bits: less memory for what does not train.

```
frozen linear layer --> torchao quantises its weight --> packed rows --> `QuantisedLinear`
```
Kinds that begin with `bnb_` are layers of bitsandbytes (`common.packages.bitsandbytes`): where a
run loads its base from files they are quantised as they are read, here only those of a model in
memory.
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from controlllm.common.errors import ConfigError
from controlllm.common.packages.bitsandbytes import bnb_linear, settle_bnb_linear, stored_bytes
from controlllm.common.packages.quantizers import QUANTIZERS
from controlllm.expansion import (
    ControlLLMForCausalLM,
    block_parts,
    decoder_blocks,
    quantised_kind,
    quantised_layers,
)
from controlllm.expansion.files.fingerprint import remember_fingerprint
from controlllm.expansion.files.sidecar import base_fingerprint
from controlllm.train.config.compatibility import check_quantised
from controlllm.train.config.parallel_config import ParallelConfig
from controlllm.train.setup.quantised_linear import QuantisedLinear

__all__ = ["check_shared", "frozen_linears", "quantize_base"]

log = logging.getLogger(__name__)


def quantize_base(
    model: PreTrainedModel, kind: str, compute_dtype: torch.dtype | None = None
) -> None:
    """Quantise the linear layers of a base's frozen blocks, in place.

    Of an expanded model, copies, interpolators, embeddings, norms and the head stay as they are.
    Kinds of bitsandbytes are also made of a base that is not expanded, as `from_pretrained` would,
    and layers that were loaded so stay. The base's fingerprint is noted before.

    Args:
        model: in one piece, not in parts on several processes.
        kind: one of `QUANTIZERS`.
        compute_dtype: what 4-bit layers of bitsandbytes compute in; None = as the model.

    Raises:
        ConfigError: the package is not installed, no linear layer is frozen, or some are quantised
            in another way already.
    """
    at_load = QUANTIZERS.get(kind).at_load
    expanded = isinstance(model, ControlLLMForCausalLM)
    before = [layer for _, layer in quantised_layers(model)]
    known = {str(quantised_kind(layer)) for layer in before}
    if others := sorted(known - {kind} if at_load else known):
        raise ConfigError(
            f"model.quantize_base={kind}, but this base is {', '.join(others)} already; load it "
            "unquantised, or leave the setting out."
        )
    found: list[tuple[nn.Module, str, nn.Linear]] = []
    if not before and (expanded or at_load):
        found = list(frozen_linears(model) if expanded else _linears(decoder_blocks(model)))
    if not found and not before:
        raise ConfigError(
            f"model.quantize_base={kind}, but the model has no frozen linear layer in a block; "
            "leave it out, or freeze the blocks (expansion.freeze)."
        )
    if found:
        note = base_fingerprint if expanded else remember_fingerprint
        note(model)
    dtype = compute_dtype or model.dtype
    for parent, name, linear in found:
        made = bnb_linear(linear, kind, dtype) if at_load else QuantisedLinear(linear, kind)
        setattr(parent, name, made)
    layers: list[Any] = [layer for _, layer in quantised_layers(model)]
    for layer in layers if at_load else ():
        settle_bnb_linear(layer, dtype)
    if isinstance(model, ControlLLMForCausalLM):
        model.config.base["quantised"] = [kind]
    size = sum(stored_bytes(layer) if at_load else layer.weight.nbytes for layer in layers)
    log.info(
        "The base's frozen blocks in %s: %d linear layers, %s bytes", kind, len(layers), f"{size:,}"
    )


def check_shared(model: nn.Module, parallel: ParallelConfig | None) -> None:
    """Note the base's fingerprint where it is quantised, and check that processes can share it.

    Raises:
        ConfigError: they cannot as `parallel` says (None for one process).
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


def _linears(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Plain linear layers, where they hang, and their names there."""
    for parent in list(root.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear:
                yield parent, name, module


def frozen_linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """What is quantised: each linear layer of a frozen block, where it hangs, and its name there.

    Not what only looks like one (a subclass, GPT-2's `Conv1D`, stacked experts).
    """
    for block in decoder_blocks(model):
        for found in _linears(next(block_parts(block))[1]):
            if not found[2].weight.requires_grad:
                yield found
