"""A divergence that swamps the loss: noticed in the metrics, and told with what to set."""

from collections.abc import Mapping

from controlllm.expansion import ExpansionConfig
from controlllm.train.observe import metrics as names

__all__ = ["swamped"]

MOST_DIVERGENCE = 1.0
"""Times the cross-entropy: above it, most of the loss is no learning."""
MOST_GRADIENT = 100.0
"""Times the cross-entropy: gradients of sound runs stay at a few times it."""
SHARE = 0.1
"""Of the cross-entropy: what a suggested weight would have made of the divergence."""


def swamped(step: int, means: Mapping[str, float], expansion: ExpansionConfig) -> str | None:
    """The warning for a step whose divergence, or its gradient, is far above the cross-entropy.

    Args:
        step: the step of the record.
        means: the metrics of the record, by name.
        expansion: how the model was expanded.

    Returns:
        A warning with the ratio and what to set; None where all is well, or nothing diverges.
    """
    divergence = means.get(names.DIVERGENCE, 0.0)
    entropy, norm = means[names.CROSS_ENTROPY], means[names.GRAD_NORM]
    if (
        divergence <= 0
        or max(divergence - MOST_DIVERGENCE * entropy, norm - MOST_GRADIENT * entropy) <= 0
    ):
        return None
    ratio = divergence / max(entropy, 1e-12)
    return (
        f"step {step}: the divergence ({divergence:.3g}) is {ratio:.2g} times the cross-entropy "
        f"({entropy:.3g}), and the gradient norm before clipping is {norm:.3g}: the copies are "
        f"held to their twins more than they learn. {_advice(expansion, ratio)}"
    )


def _advice(expansion: ExpansionConfig, ratio: float) -> str:
    weight, ways = expansion.divergence_weight, []
    if expansion.divergence != "nmse":
        ways.append(
            "expansion.divergence=nmse with expansion.divergence_weight=0.3 (relative to what each "
            "block does, as in the preset retain)"
        )
    if isinstance(weight, int | float):
        smaller = weight * min(SHARE / ratio, SHARE)
        ways.append(f"expansion.divergence_weight={smaller:.1g} (now {weight:g})")
    else:
        ways.append("a small number as expansion.divergence_weight, such as 0.01")
    return f"Set {', or '.join(ways)}, or a lower training.learning_rate."
