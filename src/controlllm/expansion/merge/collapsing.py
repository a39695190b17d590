"""`collapse` and `combine`: expanded models back into one, by interpolating weights.

Interpolating weights is not interpolating outputs: always report a collapsed model's score beside
the expanded one's. Only the ends are exact, being linear. Source: docs/method.md §7.
"""

import copy
import logging
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from controlllm.common.adapters import has_adapters, merge_adapters
from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.registry import check_choice
from controlllm.expansion.files.lineage import parents_of_base
from controlllm.expansion.files.sidecar import base_fingerprint, sidecar_tensors
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.merge.checks import require_alone, require_one_alpha
from controlllm.expansion.method.block import ConcatBlock, ExpandedBlock, StackBlock
from controlllm.expansion.method.dials import is_zero
from controlllm.expansion.method.ends import ExpandedEnd, set_vocab_size
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.interpolators import Slerp
from controlllm.expansion.method.registries import INTERPOLATORS
from controlllm.expansion.surgery.anatomy import residual_projections
from controlllm.expansion.surgery.install import Expansion
from controlllm.expansion.surgery.quantised import quantised_layers

__all__ = [
    "blended",
    "check_same_kind",
    "collapse",
    "combine",
    "fold",
    "fold_ends",
    "interpolate",
    "merge_active_adapters",
    "weight_alphas",
]


log = logging.getLogger(__name__)


@torch.no_grad()
def collapse(model: ControlLLMForCausalLM, inplace: bool = False) -> PreTrainedModel:
    """Fold the trained parts into the base: the original class and size again.

    A block becomes the interpolation of its two branches' weights at its alpha (the dial, the
    constant, or for a token gate the dial times the mean that `record_alpha` measured); `slerp`
    interpolates row by row; a stacked block's change since it was inserted is added to its source.
    Adapters are merged into the weights they were put around. Untrained expansions give the base,
    bit for bit. Of several sidecars the changes are added, p + sum_k (w_k - p), w_k being what each
    alone would give; those that are off take no part.

    Args:
        model: the expanded model.
        inplace: reuse its memory; the expanded model and its base are then gone.

    Raises:
        ModelError: if the interpolator has no meaning for weights (moe, prog, proj), a token
            gate's mean alpha was never measured, or the base is quantised.
    """
    if next(quantised_layers(model), None) is not None:
        raise ModelError(
            "The base of this model is quantised, and packed weights cannot be interpolated: load "
            "the sidecar onto the base as it was, and collapse that."
        )
    ones = _on_base(model)
    for expansion, _ in ones:
        require_one_alpha(expansion)
    alphas = [weight_alphas(expansion.blocks, config) for expansion, config in ones]
    if not inplace:
        model = copy.deepcopy(model)
        ones = _on_base(model)
    if len(model.sidecars) < 2:
        merge_active_adapters(model)
    _fold_all([(*one, each) for one, each in zip(ones, alphas, strict=True)])
    grown = model.config.base.get("grown_vocab_size")
    base = model.unload()
    if grown is not None:
        set_vocab_size(base, grown)
    return base


def _on_base(model: ControlLLMForCausalLM) -> list[tuple[Expansion, ExpansionConfig]]:
    """The expansion of a model and its settings; of several sidecars those that are on."""
    if len(model.sidecars) < 2:
        return [(model._expansion, model.expansion)]
    named = [(one._expansion, one.expansion) for one in model._named.values()]
    return [one for one in named if any(not is_zero(part.dial) for part in one[0].parts())]


def _fold_all(ones: list[tuple[Expansion, ExpansionConfig, dict[int, float]]]) -> None:
    """Put what each changes alone into the pretrained blocks and ends, in place."""
    if len(ones) == 1:
        fold(*ones[0])
        return
    parts = [part for expansion, _, _ in ones for part in expansion.parts()]
    frozen = list({id(p): p for part in parts for p in part.pretrained.parameters()}.values())
    before = [p.detach().clone() for p in frozen]
    sums = [p.to(torch.float32, copy=True) for p in before]
    for one in ones:
        fold(*one)
        for p, was, total in zip(frozen, before, sums, strict=True):
            total += p.float() - was.float()
            p.data.copy_(was)
    for p, total in zip(frozen, sums, strict=True):
        p.data.copy_(total)


def merge_active_adapters(model: ControlLLMForCausalLM) -> None:
    """Merge adapters into the weights they were put around; at alpha 0, where they are off, not."""
    if model.expansion.dial != 0:
        merge_adapters(model)


def weight_alphas(blocks: Mapping[int, ExpandedBlock], config: ExpansionConfig) -> dict[int, float]:
    """The alpha at which each block's weights are interpolated.

    Raises:
        ModelError: if the interpolator has no meaning for weights, or a token gate's mean alpha was
            never measured.
    """
    if not INTERPOLATORS.get(config.interpolator).collapsible and config.structure != "stack":
        raise ModelError(
            f"interpolator={config.interpolator!r} has no meaning for weights and cannot be "
            "collapsed; keep the full or sidecar form, or train with lerp, slerp, dlerp or dlerpin."
        )
    alphas = {}
    for layer, block in blocks.items():
        if isinstance(block, ConcatBlock) and not block.interpolator.constant:
            alpha = block.at_dial((config.mean_alpha or {}).get(layer))
        else:
            alpha = block.alpha()
        if alpha is None:
            raise ModelError(
                f"interpolator={config.interpolator!r} decides alpha per token, and its mean was "
                f"never measured for layer {layer}: evaluate inside `with model.record_alpha():` "
                "first."
            )
        alphas[layer] = alpha
    return alphas


def fold(expansion: Expansion, config: ExpansionConfig, alphas: Mapping[int, float]) -> None:
    """Put what was trained into the pretrained blocks and ends, in place.

    Raises:
        ModelError: the dial holds one alpha per row; nothing is changed then.
    """
    require_one_alpha(expansion)
    for layer, block in expansion.blocks.items():
        if isinstance(block, StackBlock):
            _fold_stack(block, alphas[layer], config.residual_projections)
        else:
            assert isinstance(block, ConcatBlock)
            for _, p, value in blended(block, alphas[layer]):
                p.data.copy_(value)
    fold_ends(expansion.ends)


def blended(block: ConcatBlock, alpha: float) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Each parameter of the pretrained branch: its name, itself, its blend at alpha in float32."""
    arc = block.interpolator if isinstance(block.interpolator, Slerp) else None
    trained = block.expanded.parameters()
    for (name, p), e in zip(block.pretrained.named_parameters(), trained, strict=True):
        at = torch.tensor([alpha], device=p.device)
        one, other = p.float(), e.float()
        yield name, p, arc.mix(one, other, at) if arc else torch.lerp(one, other, alpha)


def combine(
    a: ControlLLMForCausalLM, b: ControlLLMForCausalLM, weight: float = 0.5, form: str = "expanded"
) -> PreTrainedModel:
    """Make one model of two that were expanded from the same base in the same way.

    Args:
        a: one model; not changed.
        b: the other; not changed.
        weight: what `b` counts, 0 to 1.
        form: "expanded" blends the trained parts (interpolators too); "collapsed" collapses both
            into the base and blends the results.

    Returns:
        An expanded model, or one of the base's class. An expanded one stands at the dial of both;
        where theirs differ it is as trained, which is told.

    Raises:
        ConfigError: for a weight that is not from 0 to 1, or a form that is not known.
        ModelError: if their bases or their expansions differ, with what differs; or for adapters
            in the form "expanded".
    """
    check_choice("form", form, ("expanded", "collapsed"))
    require_alone(a)
    require_alone(b)
    if not 0 <= weight <= 1:
        raise ConfigError(f"weight={weight!r}; allowed: a number from 0 (only a) to 1 (only b).")
    if base_fingerprint(a) != base_fingerprint(b):
        raise ModelError(
            f"Only models with the same base can be combined: weights {base_fingerprint(a)} "
            f"against {base_fingerprint(b)}."
        )
    if list(a.blocks) != list(b.blocks):
        raise ModelError(f"Expanded layers differ: {list(a.blocks)} against {list(b.blocks)}.")
    check_same_kind(a.expansion, b.expansion, sidecar_tensors(a), sidecar_tensors(b))
    if form == "collapsed":
        collapsed, other = collapse(a), collapse(b)
        with torch.no_grad():
            for p, q in zip(collapsed.parameters(), other.parameters(), strict=True):
                p.copy_(interpolate(p, q, weight))
        return collapsed
    if has_adapters(a):
        raise ModelError(
            "Adapters are products of matrices, which cannot be blended one by one: combine these "
            "models in the form 'collapsed'."
        )
    one = copy.deepcopy(a)
    with torch.no_grad():
        ours, theirs = sidecar_tensors(one), sidecar_tensors(b)
        for name, tensor in ours.items():
            tensor.copy_(interpolate(tensor, theirs[name], weight))
    one.config.parents = parents_of_base(a.config.parents)
    one.config.expansion["mean_alpha"] = None  # measured on a and b, not on this one
    dials = a.expansion.dial, b.expansion.dial
    if dials[0] != dials[1]:
        shown = " and ".join("as trained" if dial is None else f"{dial}" for dial in dials)
        log.warning(
            "The dials of the two models differ (%s), so the combined one stands as trained: "
            "calibrate it by itself.",
            shown,
        )
        one.set_alpha(None)
    return one


def check_same_kind(
    a: ExpansionConfig,
    b: ExpansionConfig,
    tensors: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
) -> None:
    """Check that two expansions are alike, so that their tensors can be blended (ModelError)."""
    for key in ("structure", "interpolator", "expand_ends", "relaxed_norm"):
        ours, theirs = getattr(a, key), getattr(b, key)
        if ours != theirs:
            raise ModelError(f"Expansions differ in {key}: {ours!r} against {theirs!r}.")
    shapes = [{n: t.shape for n, t in pair.items()} for pair in (tensors, others)]
    different = [n for n in shapes[0] if shapes[0][n] != shapes[1].get(n)]
    if different or shapes[0].keys() != shapes[1].keys():
        raise ModelError(
            f"Trained tensors differ in shape or name, first: {different[:3] or 'different sets'}."
        )


def interpolate(p: Tensor, e: Tensor, alpha: float) -> Tensor:
    """Interpolate weights in float32; equal ones come out unchanged."""
    return torch.lerp(p.float(), e.float(), alpha).to(p.dtype)


def _fold_stack(block: StackBlock, alpha: float, names: list[str] | None) -> None:
    """Add what the block has learned since it was inserted with zero residual projections."""
    zeroed = {id(parameter) for parameter in residual_projections(block.expanded, names)}
    for p, g in zip(block.pretrained.parameters(), block.expanded.parameters(), strict=True):
        start = torch.zeros_like(p) if id(g) in zeroed else p
        p.data.copy_(p.float() + alpha * (g.float() - start.float()))


def fold_ends(ends: dict[str, ExpandedEnd]) -> None:
    """Put the joined weights into the base's own modules; a tied weight is joined once."""
    if not ends:
        return
    joined: dict[int, tuple[nn.Parameter, Tensor]] = {}
    for end in ends.values():
        for name, parameter in end.pretrained.named_parameters():
            trained = end.expanded.get_parameter(name)
            rows = parameter.shape[0]
            folded = end.join(parameter.float(), trained[:rows].float()).to(parameter.dtype)
            joined.setdefault(id(parameter), (parameter, torch.cat([folded, trained[rows:]])))
    for parameter, value in joined.values():
        parameter.data = value
    embedding, head = ends["embedding"].pretrained, ends["head"].pretrained
    assert isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear)
    embedding.num_embeddings = embedding.weight.shape[0]
    head.out_features = head.weight.shape[0]
