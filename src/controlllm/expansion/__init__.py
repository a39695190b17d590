"""The method: frozen blocks, trainable copies beside them, and what joins them.

                  x (merged stream, B x T x D)
                  |---------------------------.
          pretrained f (frozen)        expanded g (trained copy)      each with its own KV-cache
          slot:
                  | p                          | e                    layer_idx l  and  L + k
                  '------- interpolator -------'--> divergence d(p, e) per token (training only)
                                |
                         out = (1-alpha) p + alpha e

    from controlllm import ExpansionConfig, expand

    model = expand(base, ExpansionConfig(num_blocks=8))   # outputs are still the base's, bit for
    bit model(input_ids=ids, labels=ids).loss.backward()      # cross-entropy + divergence
    model.set_alpha(0.3)                                  # the dial: 0 is the base

| module | what it holds | kind |
|---|---|---|
| `config` | `ExpansionConfig`: what to expand and how | data |
| `plan` | where the copies go | pure |
| `interpolators` | gate x mix: lerp, dlerp, dlerpin, slerp, moe, prog, proj | modules |
| `divergence` | mse, nmse, cosine, dot, attention | pure |
| `block` | the block above, and the stacked one | modules |
| `ends` | embedding, final norm and LM head, expanded likewise | modules |
| `alignment` | how the divergence reaches the gradient, whichever loop trains | state |
| `anatomy`, `surgery` | finding the parts of any decoder, putting copies in, taking them out |
surgery |
| `hf_config`, `modeling`, `dial`, `outputs` | the `PreTrainedModel` | Hugging Face |
| `expanding`, `collapsing` | in, and back out: `expand`, `collapse`, `combine` | faces |
| `sidecar`, `full`, `card`, `fingerprint` | what is saved | files |
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.expansion.files.sidecar import save_sidecar
    from controlllm.expansion.hub.expand import expand
    from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
    from controlllm.expansion.hub.sidecar_loading import load_sidecar
    from controlllm.expansion.merge.collapsing import collapse, combine
    from controlllm.expansion.method.divergence import DIVERGENCES
    from controlllm.expansion.method.expansion_config import ExpansionConfig
    from controlllm.expansion.method.hf_config import ControlLLMConfig
    from controlllm.expansion.method.interpolators import INTERPOLATORS, Interpolator

__all__ = [
    "DIVERGENCES",
    "INTERPOLATORS",
    "ControlLLMConfig",
    "ControlLLMForCausalLM",
    "ExpansionConfig",
    "Interpolator",
    "collapse",
    "combine",
    "expand",
    "load_sidecar",
    "save_sidecar",
]

_HOMES = {
    "DIVERGENCES": "method.divergence",
    "INTERPOLATORS": "method.interpolators",
    "ControlLLMConfig": "method.hf_config",
    "ControlLLMForCausalLM": "hub.modeling",
    "ExpansionConfig": "method.expansion_config",
    "Interpolator": "method.interpolators",
    "collapse": "merge.collapsing",
    "combine": "merge.collapsing",
    "expand": "hub.expand",
    "load_sidecar": "hub.sidecar_loading",
    "save_sidecar": "files.sidecar",
}
__getattr__, __dir__ = lazy_names(__name__, {n: f"{__name__}.{home}" for n, home in _HOMES.items()})
