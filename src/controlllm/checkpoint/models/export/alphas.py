"""At which alphas a model is folded, in words: what cards and the terminal say of it."""

from collections.abc import Mapping

from controlllm.common.tensors import whole
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.merge.checks import require_one_alpha
from controlllm.expansion.merge.collapsing import weight_alphas
from controlllm.expansion.method.dials import is_number

__all__ = ["one_alpha", "told_alphas"]


def told_alphas(model: ControlLLMForCausalLM) -> str:
    """`0.5`, or `layer 3: 0.5, layer 7: 0.42, ends: 0.5` where parts differ; or by sidecar.

    Raises:
        ModelError: as `collapse` does for its blocks.
    """
    if len(model.sidecars) > 1:
        dials = {name: one.dial for name, one in model.expansions.items()}
        return ", ".join(f"{n}: {'as trained' if d is None else d}" for n, d in dials.items())
    alphas = _alphas(model)
    alone = one_alpha(model)
    if alone is not None:
        return f"{alone:.4g}"
    return ", ".join(f"{part}: {alpha:.4g}" for part, alpha in alphas.items())


def one_alpha(model: ControlLLMForCausalLM) -> float | None:
    """The alpha of all parts, if it is one."""
    alphas = {round(alpha, 6) for alpha in _alphas(model).values()}
    return alphas.pop() if len(alphas) == 1 else None


def _alphas(model: ControlLLMForCausalLM) -> Mapping[str, float]:
    require_one_alpha(model._expansion)
    blocks = weight_alphas(model.blocks, model.expansion)
    alphas = {f"layer {layer}": alpha for layer, alpha in blocks.items()}
    for kind, end in model._expansion.ends.items():
        own = whole(end.interpolator.alpha()).item()
        alphas[kind] = end.dial if is_number(end.dial) else own
    return alphas
