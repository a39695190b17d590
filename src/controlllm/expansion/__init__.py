"""The method: frozen blocks, trainable copies beside them, and what joins them (`method.block`).

    from controlllm import ExpansionConfig, expand

    model = expand(base, ExpansionConfig(num_blocks=8))  # its outputs are the base's, bit for bit
    model(input_ids=ids, labels=ids).loss.backward()     # cross-entropy + divergence
    model.set_alpha(0.3)                                 # the dial: 0 is the base

method   The paper: blocks, gates, mixes, divergences
surgery  Putting the method into any decoder, turning its dial, and taking it out
files    What is written beside weights: sidecars, the identity of a base, the card
hub      The Hugging Face model and its folders: `expand`, `expand_beside`, `load_sidecar`,
         `load_sidecars`
merge    Back to the original architecture: `collapse`, `combine`, `unroll`
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.expansion.files.adapter_config import AdapterConfig
    from controlllm.expansion.files.sidecar import save_sidecar
    from controlllm.expansion.hub.branches import BranchedForCausalLM, expand_beside
    from controlllm.expansion.hub.expand import block_parts, decoder_blocks, expand
    from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
    from controlllm.expansion.hub.peft import add_adapters, require_peft
    from controlllm.expansion.hub.several import load_sidecars
    from controlllm.expansion.hub.sidecar_loading import load_sidecar
    from controlllm.expansion.merge.collapsing import collapse, combine
    from controlllm.expansion.merge.unrolling import unroll
    from controlllm.expansion.method.block import ConcatBlock, ExpandedBlock, StackBlock
    from controlllm.expansion.method.divergence import DIVERGENCES
    from controlllm.expansion.method.expansion_config import ExpansionConfig
    from controlllm.expansion.method.hf_config import ControlLLMConfig
    from controlllm.expansion.method.interpolators import INTERPOLATORS, Interpolator
    from controlllm.expansion.method.plan import plan_blocks
    from controlllm.expansion.method.unread import trains_interpolators
    from controlllm.expansion.surgery.quantised import (
        parameter_count,
        quantised_kind,
        quantised_layers,
    )

__all__ = [
    "DIVERGENCES",
    "INTERPOLATORS",
    "AdapterConfig",
    "BranchedForCausalLM",
    "ConcatBlock",
    "ControlLLMConfig",
    "ControlLLMForCausalLM",
    "ExpandedBlock",
    "ExpansionConfig",
    "Interpolator",
    "StackBlock",
    "add_adapters",
    "block_parts",
    "collapse",
    "combine",
    "decoder_blocks",
    "expand",
    "expand_beside",
    "load_sidecar",
    "load_sidecars",
    "parameter_count",
    "plan_blocks",
    "quantised_kind",
    "quantised_layers",
    "require_peft",
    "save_sidecar",
    "trains_interpolators",
    "unroll",
]

__getattr__, __dir__ = lazy_names(__name__)
