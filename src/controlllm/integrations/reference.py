"""The base inside an expanded model, for trainers that compare a policy with a reference model."""

from typing import Any

from torch import Tensor, nn

from controlllm.common.errors import ModelError
from controlllm.evaluate.forgetting.losses import evaluating
from controlllm.expansion.files.sidecar import sidecar_tensors
from controlllm.expansion.method.expansion_config import FROZEN_GROUPS
from controlllm.integrations.callback import ControlLLMCallback

__all__ = ["BaseReference"]


class BaseReference(nn.Module):
    """The base inside an expanded model, as a reference model without any weights of its own.

    A call runs the policy itself (the expanded model, or PEFT's model around it) without gradients,
    with its expansion and PEFT's adapters disabled, in evaluation mode: what a second copy of the
    base would give.

    Raises:
        ModelError: if there is no expanded model in it, it is a base whose expansion is an adapter
            of PEFT (whose own face TRL knows), or parts of its base train.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        expanded = ControlLLMCallback.find_expanded(model)
        changing = sorted(set(FROZEN_GROUPS) - set(expanded.expansion.frozen_groups))
        if changing:
            raise ModelError(
                f"{', '.join(changing)} of the base train too (expansion.freeze), so it is no "
                "reference. Leave freeze out (expand_ends=True trains copies of the ends instead), "
                "or give DPO another ref_model."
            )
        # In a tuple: the policy must not become a part of this module, which owns nothing.
        self._models: tuple[Any, Any] = (model, expanded)

    @property
    def config(self) -> Any:
        """The expanded model's config."""
        return self._models[1].config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The policy's own output for the same arguments, computed by the base.

        TRL and accelerate give every model that they prepare another `forward`. They have done so
        with the policy, so the one that they give this module is never needed.

        Raises:
            ModelError: if `labels` hold tokens that were added to the base.
        """
        policy, expanded = self._models
        self._refuse_added_tokens(kwargs.get("labels"))
        with (
            # PEFT first: adapters that it finds switched off already it does not switch on again.
            policy.disable_adapter(),
            expanded.disable_adapter(),
            evaluating(policy),
        ):
            return policy(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The base's tensors: TRL tells by them for which reference it has cached something."""
        expanded = self._models[1]
        trained = {f"base.{name}" for name in sidecar_tensors(expanded)}
        return {k: v for k, v in expanded.state_dict().items() if k not in trained}

    def _refuse_added_tokens(self, labels: Tensor | None) -> None:
        known, grown = (self.config.base.get(k) for k in ("vocab_size", "grown_vocab_size"))
        if grown is not None and labels is not None and bool((labels >= known).any()):
            raise ModelError(
                f"The reference is the base, which knows {known} tokens. These rows hold tokens "
                "added since, to which it gives no probability: leave them out of completions, or "
                "give DPO another ref_model, which knows them."
            )
