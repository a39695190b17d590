"""The expanded parts of a model, made of its own; the model is not changed."""

import torch
from torch import nn

from controlllm.expansion.method.block import ConcatBlock, ExpandedBlock, StackBlock
from controlllm.expansion.method.ends import (
    ExpandedEmbedding,
    ExpandedEnd,
    ExpandedHead,
    ExpandedNorm,
)
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.plan import BlockPlan
from controlllm.expansion.method.state import AlignmentState
from controlllm.expansion.surgery.anatomy import Anatomy, residual_projections
from controlllm.expansion.surgery.checks import ends_are_tied
from controlllm.expansion.surgery.quantised import trainable_twin

__all__ = ["make_block", "make_ends"]


def make_block(
    anatomy: Anatomy, plan: BlockPlan, config: ExpansionConfig, state: AlignmentState
) -> ExpandedBlock:
    """Make the expanded block of one position of a model, which is not changed."""
    pretrained = anatomy.layers[plan.layer]
    expanded = trainable_twin(pretrained)
    for module in expanded.modules():
        if getattr(module, "layer_idx", None) == plan.layer:
            setattr(module, "layer_idx", plan.cache_index)  # noqa: B010  # mypy: modules have no such field
    block: ExpandedBlock
    if plan.kind == "stack":
        with torch.no_grad():
            for parameter in residual_projections(expanded, config.residual_projections):
                parameter.zero_()
        block = StackBlock(pretrained, expanded, plan.layer, state, plan.cache_index)
    else:
        width = anatomy.config.hidden_size
        block = ConcatBlock(
            pretrained, expanded, plan.layer, state, plan.cache_index, config, width
        )
        _to_like(block.interpolator, expanded)
    return block.train(pretrained.training)


def _to_like(module: nn.Module, like: nn.Module) -> None:
    """Give new parameters the device and the float type of the block's own."""
    reference = next((p for p in like.parameters() if p.is_floating_point()), None)
    if reference is None:
        return
    # A base without weights gets them later; what is new has its values now.
    device = None if reference.is_meta else reference.device
    module.to(device=device, dtype=reference.dtype)


def make_ends(
    anatomy: Anatomy, config: ExpansionConfig, state: AlignmentState
) -> dict[str, ExpandedEnd]:
    """Make the expanded ends by kind; tied weights are tied in the copies, too.

    The model is not changed.
    """
    tied = ends_are_tied(anatomy)
    kinds: dict[str, tuple[nn.Module | None, type[ExpandedEnd]]] = {
        "embedding": (anatomy.embedding, ExpandedEmbedding),
        "norm": (anatomy.norm, ExpandedNorm),
        "head": (anatomy.head, ExpandedHead),
    }
    ends = {}
    for kind, (module, make) in kinds.items():
        assert module is not None  # check_parts has looked
        ends[kind] = make(module, trainable_twin(module), config, state)
        _to_like(ends[kind].interpolator, module)
        ends[kind].train(module.training)
    if tied:
        ends["head"].expanded.weight = ends["embedding"].expanded.weight
    return ends
