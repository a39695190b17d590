"""What collapsing changes in the base's weights, and matrices of low rank in its place.

    W_collapsed - W = D ~ B A        A (r, in), B (out, r)

Of a straight mix D is alpha times the difference of both branches, so B A times a scale is the
collapsed model at that share of alpha: a dial, approximately, for tools that know LoRA.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from controlllm.common.adapters import has_adapters
from controlllm.common.errors import ModelError
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.merge.checks import require_alone, require_one_alpha
from controlllm.expansion.merge.collapsing import blended, weight_alphas
from controlllm.expansion.method.block import ConcatBlock
from controlllm.expansion.surgery.anatomy import module_name
from controlllm.expansion.surgery.quantised import quantised_layers

__all__ = ["Change", "applied", "factor", "weight_changes"]

_EXACT = 512
"""Matrices up to this side are decomposed exactly: it takes a fraction of a second."""
_OVERSAMPLED, _ROUNDS = 16, 4
"""Of the randomised decomposition of larger ones (Halko, Martinsson and Tropp 2011)."""


@dataclass(frozen=True)
class Change:
    """What collapsing adds to one parameter of the base.

    Attributes:
        name: the parameter's name in the base.
        parameter: the base's own, which is not changed.
        delta: what is added, in float32, shaped as the parameter.
        linear: whether it is the matrix of a linear layer inside a block, which LoRA can adapt.
        transposed: whether that layer keeps its matrix as (in, out).
    """

    name: str
    parameter: nn.Parameter
    delta: Tensor
    linear: bool
    transposed: bool


@torch.no_grad()
def weight_changes(model: ControlLLMForCausalLM) -> Iterator[Change]:
    """What `collapse` would add to each parameter of the base, one after another.

    Raises:
        ModelError: copies are stacked, tokens were added, there are adapters already, the base is
            quantised, or weights cannot be interpolated (`weight_alphas`).
    """
    _check(model)
    require_one_alpha(model._expansion)
    alphas = weight_alphas(model.blocks, model.expansion)
    for layer, block in model.blocks.items():
        assert isinstance(block, ConcatBlock)  # `_check` has looked
        prefix = module_name(model.base, block)
        linear = {
            f"{name}.weight": isinstance(module, Conv1D)
            for name, module in block.pretrained.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        }
        for name, parameter, value in blended(block, alphas[layer]):
            delta = value - parameter.float()
            named = f"{prefix}.{name}"
            yield Change(named, parameter, delta, name in linear, linear.get(name, False))
    seen: set[int] = set()
    for end in model._expansion.ends.values():
        prefix = module_name(model.base, end)
        for name, parameter in end.pretrained.named_parameters():
            if id(parameter) not in seen:  # tied weights count once
                seen.add(id(parameter))
                joined = end.join(parameter.float(), end.expanded.get_parameter(name).float())
                delta = joined - parameter.float()
                yield Change(f"{prefix}.{name}", parameter, delta, False, False)


def _check(model: ControlLLMForCausalLM) -> None:
    """Check that the base's own weights, changed, are the collapsed model (ModelError)."""
    require_alone(model)
    structure = model.expansion.structure
    why = None
    if structure != "concat":
        why = f"structure={structure!r} adds layers, and LoRA adds to matrices that are there"
    elif has_adapters(model):
        why = "it has adapters already, which are no part of what was collapsed"
    elif model.config.base.get("grown_vocab_size") is not None:
        why = "tokens were added, which the base has no rows for"
    elif next(quantised_layers(model), None) is not None:
        why = "its base is quantised: load the sidecar onto the base as it was"
    if why is not None:
        raise ModelError(
            f"This model's change cannot be written as a LoRA of its base: {why}. Keep the form "
            "'sidecar' or 'full'."
        )


@torch.no_grad()
def factor(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The matrices A (r, in) and B (out, r) whose product is nearest to one of (out, in).

    In float32; sides share the singular values' square roots. Ranks above the full one are filled
    with zeros. The same for every call: the random state of the process is left alone.
    """
    full = min(matrix.shape)
    kept = min(rank, full)
    if full <= _EXACT or 4 * kept >= full:
        left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sides = min(kept + _OVERSAMPLED, full)
            left, values, transposed = torch.svd_lowrank(matrix.float(), sides, _ROUNDS)
            right = transposed.mH
    root = values[:kept].sqrt()
    a = matrix.new_zeros((rank, matrix.shape[1]), dtype=torch.float32)
    b = matrix.new_zeros((matrix.shape[0], rank), dtype=torch.float32)
    a[:kept], b[:, :kept] = root[:, None] * right[:kept], left[:, :kept] * root
    return a, b


@contextmanager
def applied(
    model: ControlLLMForCausalLM, deltas: Mapping[nn.Parameter, Tensor]
) -> Iterator[PreTrainedModel]:
    """Inside, the base's parameters are changed and the model computes that base alone."""
    before = {parameter: parameter.data for parameter in deltas}
    try:
        for parameter, delta in deltas.items():
            parameter.data = (parameter.data.float() + delta).to(parameter.dtype)
        with model.disable_expansion():
            yield model
    finally:
        for parameter, data in before.items():
            parameter.data = data
