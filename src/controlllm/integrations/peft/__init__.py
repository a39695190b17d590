"""Control LLM as a tuner of PEFT: named sidecars on one base, in PEFT's own forms.

    import controlllm.integrations.peft                    # makes the type known to PEFT
    from controlllm.integrations.peft import ControlLLMPeftConfig
    from peft import PeftModel, get_peft_model

    model = get_peft_model(base, ControlLLMPeftConfig(num_blocks=8))
    ...                                                    # train it with any trainer
    model.save_pretrained("adapter")
    model = PeftModel.from_pretrained(base, "adapter")     # or AutoModelForCausalLM

| module | what it holds |
|---|---|
| `config` | `ControlLLMPeftConfig`: an `ExpansionConfig` that PEFT can keep |
| `layer` | what stands in a block's place: the frozen block and one expanded part per adapter |
| `adapter`, `adapters` | one, with its dial; all of one base: put in, switched, taken out again |
| `passes` | what happens around a forward pass: the loss gets its divergence |
| `tuner` | `ControlLLMTuner`: what PEFT calls; weighted means |
| `names`, `convert` | what tensors are called; a sidecar's folder to an adapter's and back |

Importing this package registers the type, which PEFT offers no entry point for.
"""

from peft.utils import register_peft_method

from controlllm.integrations.peft.adapter import Adapter
from controlllm.integrations.peft.adapters import Adapters, adapters_of
from controlllm.integrations.peft.config import ControlLLMPeftConfig
from controlllm.integrations.peft.convert import adapter_to_sidecar, sidecar_to_adapter
from controlllm.integrations.peft.names import PEFT_TYPE
from controlllm.integrations.peft.tuner import ControlLLMTuner

__all__ = [
    "Adapter",
    "Adapters",
    "ControlLLMPeftConfig",
    "ControlLLMTuner",
    "adapter_to_sidecar",
    "adapters_of",
    "sidecar_to_adapter",
]

register_peft_method(
    name=PEFT_TYPE.lower(),
    config_cls=ControlLLMPeftConfig,
    model_cls=ControlLLMTuner,
    prefix=ControlLLMTuner.prefix,
)
