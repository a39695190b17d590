"""What cannot be expanded is refused before anything is changed."""

from collections.abc import Sequence

from torch import nn

from controlllm.common.errors import ModelError
from controlllm.expansion.method.attention_maps import attention_module
from controlllm.expansion.method.block import ExpandedBlock
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.expansion.method.plan import ENDS, BlockPlan, check_layers
from controlllm.expansion.method.relaxed_norm import norms_of
from controlllm.expansion.surgery.anatomy import Anatomy, residual_projections
from controlllm.expansion.surgery.quantised import (
    quantised_kind,
    quantised_layers,
    refuse_unreadable,
)

__all__ = ["check_parts", "ends_are_tied", "refuse_expanded"]


def refuse_expanded(model: nn.Module) -> None:
    """Check that a model is not expanded yet (ModelError)."""
    if any(isinstance(module, ExpandedBlock) for module in model.modules()):
        raise ModelError(
            "This model is expanded already; call model.unload() first, or set_alpha() to change "
            "alpha."
        )


def check_parts(
    model: nn.Module, anatomy: Anatomy, plan: Sequence[BlockPlan], config: ExpansionConfig
) -> None:
    """Check that a model has the parts that a config needs (ModelError, ConfigError)."""
    refuse_unreadable(model, anatomy.layers)
    _check_frozen(anatomy, config)
    for block in plan:
        if block.kind == "stack":
            residual_projections(anatomy.layers[block.layer], config.residual_projections)
            continue
        if config.divergence == "attention":
            attention_module(anatomy.layers[block.layer])
        if config.relaxed_norm is not None and not norms_of(anatomy.layers[block.layer]):
            raise ModelError(
                f"relaxed_norm={config.relaxed_norm!r} would not be used: layer {block.layer} of "
                f"{type(model).__name__} has no norm of its own; leave it out."
            )
    if isinstance(config.dial, dict):
        ends = [ENDS] if config.expand_ends else []
        check_layers(config.dial, [*(block.layer for block in plan), *ends])
    if config.expand_ends:
        kinds = {
            "token embedding": (anatomy.embedding, nn.Embedding),
            "final norm": (anatomy.norm, nn.Module),
            "LM head": (anatomy.head, nn.Linear),
        }
        if wrong := [what for what, (part, kind) in kinds.items() if not isinstance(part, kind)]:
            raise ModelError(
                f"expand_ends=True, but {type(model).__name__} has no plain {', '.join(wrong)}."
            )


def ends_are_tied(anatomy: Anatomy) -> bool:
    """Whether embedding and head are one weight."""
    return getattr(anatomy.head, "weight", None) is getattr(anatomy.embedding, "weight", 0)


def _check_frozen(anatomy: Anatomy, config: ExpansionConfig) -> None:
    """Refuse to train, or to expand as ends, what is quantised."""
    ends = {"embeddings": anatomy.embedding, "norm": anatomy.norm, "head": anatomy.head}
    quantised = [name for name, end in ends.items() if end is not None and quantised_kind(end)]
    if next(quantised_layers(anatomy.layers), None) is not None:
        quantised.append("blocks")
    absent = [n for n, end in ends.items() if n not in config.frozen_groups and end is None]
    if absent:
        raise ModelError(f"freeze={config.freeze} lets {absent} train, which this model lacks.")
    both = {"embeddings", "head"} & set(config.frozen_groups)
    if len(both) == 1 and ends_are_tied(anatomy):
        raise ModelError(
            f"freeze={config.freeze} freezes one of embeddings and head, which are one weight in "
            "this model; name both, or neither."
        )
    trained = [name for name in quantised if name not in config.frozen_groups]
    if trained:
        raise ModelError(
            f"expansion.freeze={config.freeze} lets {', '.join(trained)} of the base train, which "
            "this base holds quantised; freeze them, or load the base unquantised."
        )
    if config.expand_ends and set(quantised) - {"blocks"}:
        raise ModelError(
            f"expand_ends=True, but the base's {', '.join(n for n in quantised if n != 'blocks')} "
            "is quantised; leave it out when loading (llm_int8_skip_modules)."
        )
