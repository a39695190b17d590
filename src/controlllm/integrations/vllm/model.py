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
from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.integrations.vllm.head import VocabParallelHead
from controlllm.integrations.vllm.rows import rows_of, token_alphas

__all__ = ["ControlLLMForCausalLM"]


class ControlLLMForCausalLM(TransformersForCausalLM):
    """An expanded model in vLLM; blocks and ends ask for the alpha of each token.

    The backend knows plain heads only: an expanded one is put in its place. It needs the alphas of
    the tokens that vLLM picks, so these leave the decoder as one more column of the hidden states.
    """

    model: ControlLLMModel

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        # A config that came from another process has not made itself known in this one.
        ControlLLMConfig.register_model()
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.rows = rows_of(vllm_config)
        expansion = self.model.expansion
        for part in expansion.parts():
            part.dial = token_alphas
            # vLLM would find a branch's, and take this for a layer.
            part.__dict__["quant_method"] = None
        self.has_ends = bool(expansion.ends)
        if self.has_ends:
            self._replace_head(expansion.ends["head"], maybe_prefix(prefix, "lm_head"))

    def _replace_head(self, head: Any, prefix: str) -> None:
        self.lm_head = VocabParallelHead(head, prefix)
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
        """Hidden states (T, D) of T tokens; (T, D + 1), alphas last, where ends are expanded."""
        alphas = self.rows.spread(get_forward_context().attn_metadata, positions.shape[-1])
        hidden = super().forward(input_ids, positions, *args, **kwargs)
        return torch.cat([hidden, alphas[:, None].to(hidden)], -1) if self.has_ends else hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits (N, W) of the hidden states that `forward` gave, N of them."""
        if not self.has_ends:
            return super().compute_logits(hidden_states)
        head: nn.Module = self.lm_head
        hidden_ND, dial_N1 = hidden_states[:, :-1], hidden_states[:, -1:].float()
        logits = head(hidden_ND.contiguous(), dial_N1)
        return None if logits is None else self.logits_processor(None, logits)

    @staticmethod
    def get_model_state_cls() -> type:
        """What the V2 model runner keeps beside this model."""
        from controlllm.integrations.vllm.runner_v2 import AlphaState

        return AlphaState
