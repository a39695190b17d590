"""What weights that serve all rows alike cannot be made of is refused."""

from controlllm.common.errors import ModelError
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.method.dials import is_number
from controlllm.expansion.surgery.install import Expansion

__all__ = ["require_alone", "require_one_alpha"]


def require_alone(model: ControlLLMForCausalLM) -> None:
    """Check that there is one sidecar only (ModelError)."""
    if len(model.sidecars) > 1:
        raise ModelError(
            f"Named sidecars ({', '.join(model.sidecars)}) stand on one base, and this "
            "takes one at a time: load the one that is meant by load_sidecar(base, folder)."
        )


def require_one_alpha(expansion: Expansion) -> None:
    """Check that the dial is no alpha per row or token: weights serve all rows (ModelError)."""
    if any(part.dial is not None and not is_number(part.dial) for part in expansion.parts()):
        raise ModelError(
            "The dial holds one alpha per row, and weights serve all rows alike: set one number "
            "first, or one per layer (model.set_alpha)."
        )
