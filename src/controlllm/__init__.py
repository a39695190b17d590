"""Control LLM: teach an open LLM something new without forgetting what it knew.

    from controlllm import ExpansionConfig, expand

    model = expand(base, ExpansionConfig(num_blocks=8))   # any Hugging Face decoder-only model
    ...                                                   # train it in any loop
    model.save_sidecar("my-sidecar")                      # the trained tensors only

Importing this package makes `AutoModelForCausalLM.from_pretrained` know expanded models. It is
quick: what needs the model code of `transformers` is imported when it is first used.
"""

from typing import TYPE_CHECKING

from controlllm.common.interrupts import end_at_once, is_command
from controlllm.common.lazy import lazy_names
from controlllm.common.quiet import quiet_imports

end_at_once()  # Where this is the command line: what follows takes seconds.

if TYPE_CHECKING:
    from controlllm.expansion import (
        ControlLLMConfig,
        ControlLLMForCausalLM,
        ExpansionConfig,
        collapse,
        combine,
        expand,
        expand_beside,
        load_sidecar,
        load_sidecars,
    )

__all__ = [
    "ControlLLMConfig",
    "ControlLLMForCausalLM",
    "ExpansionConfig",
    "collapse",
    "combine",
    "expand",
    "expand_beside",
    "load_sidecar",
    "load_sidecars",
]
__version__ = "0.1.0"


def register() -> None:
    """Let `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know expanded models.

    Importing the package does so, but for the command line, where `--help` shall not take seconds.
    """
    from transformers import AutoConfig

    from controlllm.expansion.method.hf_config import ControlLLMConfig, SidecarsConfig

    ControlLLMConfig.register_model = staticmethod(_register_model)
    for config in (ControlLLMConfig, SidecarsConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_model() -> None:
    """Not when the package is imported: the model code takes seconds to import."""
    with quiet_imports():
        from transformers import AutoModel, AutoModelForCausalLM

        from controlllm.expansion.hub.backbone import ControlLLMModel
        from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
        from controlllm.expansion.hub.sidecars import SidecarsForCausalLM, SidecarsModel
    from controlllm.expansion.method.hf_config import ControlLLMConfig, SidecarsConfig

    AutoModel.register(ControlLLMConfig, ControlLLMModel, exist_ok=True)
    AutoModel.register(SidecarsConfig, SidecarsModel, exist_ok=True)
    AutoModelForCausalLM.register(ControlLLMConfig, ControlLLMForCausalLM, exist_ok=True)
    AutoModelForCausalLM.register(SidecarsConfig, SidecarsForCausalLM, exist_ok=True)


if not is_command():
    register()

__getattr__, __dir__ = lazy_names(__name__)
