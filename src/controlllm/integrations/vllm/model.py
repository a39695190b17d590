"""The model class on vLLM's transformers backend: any base that the backend serves, expanded."""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.models.transformers import TransformersForCausalLM
from vllm.model_executor.models.utils import maybe_prefix

from controlllm.expansion.hub.backbone import ControlLLMModel
from controlllm.expansion.method.block import ExpandedBlock
from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.expansion.method.plan import ENDS
from controlllm.expansion.method.several import SharedPart
from controlllm.integrations.vllm.checks import expansions_of
from controlllm.integrations.vllm.head import Owner, VocabParallelHead
from controlllm.integrations.vllm.inductor import mend_order
from controlllm.integrations.vllm.rows import dial_of, rows_of

__all__ = ["ControlLLMForCausalLM"]


class ControlLLMForCausalLM(TransformersForCausalLM):
    """An expanded model in vLLM; blocks and ends ask for the alpha of each token.

    The backend knows plain heads only: an expanded one is put in its place. It needs the alphas of
    the tokens that vLLM picks, so these leave the decoder as further columns of the hidden states.
    """

    model: ControlLLMModel

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        # A config that came from another process has not made itself known in this one.
        ControlLLMConfig.register_model()
        if not vllm_config.model_config.enforce_eager:
            mend_order()
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.rows = rows_of(vllm_config)
        for part in self.model.expansion.parts():
            if isinstance(part, SharedPart):
                part.share()  # What stands there now may be vLLM's own.
        owners = self._owners()
        for part, owner in owners.items():
            part.dial = dial_of(*owner)
        for part in {*owners, *self.model.expansion.parts()}:
            # vLLM would find a branch's, and take this for a layer.
            part.__dict__["quant_method"] = None
        self.has_ends = bool(self.model.expansion.ends)
        if self.has_ends:
            head = self.model.expansion.ends["head"]
            parts = head.parts if isinstance(head, SharedPart) else [head]
            self._replace_head(
                head, [owners[part] for part in parts], maybe_prefix(prefix, "lm_head")
            )

    def _owners(self) -> dict[Any, Owner]:
        """Each part's place among the sidecars, and the dial that it was saved with."""
        owners: dict[Any, Owner] = {}
        settings = expansions_of(self.config)
        for sidecar, (one, its) in enumerate(zip(self.model.expansions, settings, strict=True)):
            for part in one.parts():
                saved: Any = its.dial
                if isinstance(saved, dict):
                    saved = saved.get(part.layer if isinstance(part, ExpandedBlock) else ENDS)
                owners[part] = sidecar, saved
        return owners

    def _replace_head(self, head: Any, owners: list[Owner], prefix: str) -> None:
        self.lm_head = VocabParallelHead(head, owners, prefix)
        self.init_parameters(self.lm_head)
        if self._get_tie_word_embeddings():
            self.lm_head.tie(self.model.get_input_embeddings())
        # Scale and cap come after the branches are joined.
        self.logits_processor = LogitsProcessor(
            self.text_config.vocab_size,
            logits_as_input=True,
            scale=getattr(self.text_config, "logit_scale", 1.0),
            soft_cap=getattr(self.text_config, "final_logit_softcapping", None),
        )

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Hidden states (T, D) of T tokens; (T, D + K), alphas last, where ends are expanded."""
        alphas = self.rows.spread(get_forward_context().attn_metadata, positions.shape[-1])
        hidden = super().forward(input_ids, positions, *args, **kwargs)
        return torch.cat([hidden, alphas.to(hidden)], -1) if self.has_ends else hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits (N, W) of the hidden states that `forward` gave, N of them."""
        if not self.has_ends:
            return super().compute_logits(hidden_states)
        head: nn.Module = self.lm_head
        width = hidden_states.shape[-1] - self.rows.tokens.shape[-1]
        hidden_ND, dials_NK = hidden_states.tensor_split([width], dim=-1)
        logits = head(hidden_ND.contiguous(), dials_NK.float())
        return None if logits is None else self.logits_processor(None, logits)

    @staticmethod
    def get_model_state_cls() -> type:
        """What the V2 model runner keeps beside this model."""
        from controlllm.integrations.vllm.runner_v2 import AlphaState

        return AlphaState
