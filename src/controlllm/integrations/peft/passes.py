"""What happens around a forward pass of a base with an adapter: what the expanded model does, too.

The base's own `forward` knows nothing of adapters. Hooks around it let the blocks read the inputs,
add the divergence to a loss, and give the merged stream as hidden states.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from controlllm.expansion.hub.outputs import merged_stream, one_attention_per_layer, picked
from controlllm.expansion.method.injection import Claim, ClaimGradient
from controlllm.expansion.method.slots import Slots, check_cache, note_cache, spoil_cache
from controlllm.expansion.method.terms import DivergenceTerms
from controlllm.expansion.surgery.install import Expansion

__all__ = ["ForwardPass"]


class ForwardPass:
    """One forward pass of a base with an active adapter's parts.

    `layers` are what stands at each position of the decoder, in order.
    """

    def __init__(
        self, model: PreTrainedModel, expansion: Expansion, layers: Iterable[nn.Module]
    ) -> None:
        self.model, self.expansion, self.layers = model, expansion, layers
        self.inputs: dict[str, Any] = {}
        self.claim: Claim | None = None
        self.terms: DivergenceTerms | None = None
        self.states: list[Tensor] | None = None
        self.hidden_states: Any = None
        self.as_tuple = False
        self.inside = ExitStack()

    def begin(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the arguments of the base's forward; gives those that it is to have."""
        state = self.expansion.state
        named = {"input_ids": args[0]} if args else {}
        check_cache(kwargs.get("past_key_values"), self._slots())
        self.inputs = {k: v for k, v in {**named, **kwargs}.items() if v is not None}
        state.begin(self.inputs)
        if "labels" in self.inputs and self.model.training and state.terms is None:
            self.claim = self.inside.enter_context(state.claiming())
            self.terms = self.inside.enter_context(state.collecting())
        config = self.model.config
        wanted = kwargs.get("output_hidden_states")
        self.hidden_states = config.output_hidden_states if wanted is None else wanted
        if self.hidden_states:
            stream = merged_stream(self.model.get_decoder(), self.layers)
            self.states = self.inside.enter_context(stream)
            kwargs = {**kwargs, "output_hidden_states": False}
        if self.terms is not None or self.states is not None:
            wants_dict = kwargs.get("return_dict")
            self.as_tuple = not (config.return_dict if wants_dict is None else wants_dict)
            kwargs = {**kwargs, "return_dict": True} if self.as_tuple else kwargs
        return args, kwargs

    def end(self, output: Any) -> Any:
        """Amend the base's output; None where its forward has failed."""
        try:
            if output is None:
                spoil_cache(self.inputs.get("past_key_values"))
            note_cache(getattr(output, "past_key_values", None), self._slots())
            return self._amend(output) if isinstance(output, ModelOutput) else output
        finally:
            self.inside.close()
            self.expansion.state.inputs = None

    def _slots(self) -> Slots:
        """What the pass writes into its KV cache: the frozen blocks always run here."""
        blocks = self.expansion.blocks.values()
        return frozenset().union(*(block.slots_beside for block in blocks))

    def _amend(self, output: Any) -> Any:
        output = one_attention_per_layer(output, self.expansion)
        if self.states is not None:
            output["hidden_states"] = picked(self.states, self.hidden_states)
        if self.terms is not None and self.claim is not None and output.get("loss") is not None:
            penalty = self.expansion.state.penalty(self.terms, self.inputs)
            counted = ClaimGradient.apply(penalty, self.claim).to(output.loss.device)
            output["loss"] = output.loss + counted
        return output.to_tuple() if self.as_tuple else output
