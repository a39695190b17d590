"""vLLM: a plugin that serves expanded models, alpha chosen by each request.

    pip install controlllm vllm
    controlllm export RUN my-model --form full
    vllm serve my-model            # requests: {"vllm_xargs": {"alpha": 0.3}, ...}

vLLM finds the plugin by its entry point (`vllm.general_plugins`) and calls `register` in each of
its processes. Nothing here imports vLLM before it does.

words      What a request may say of alpha, and what of it decides a cached prefix
rows       From one alpha per request to one per token of a forward pass
model      The model class on vLLM's transformers backend
head       The expanded LM head: both branches cut over the vocabulary
checks     What is refused when the engine's configuration is made
runner_v1  Alpha of each row in the V1 model runner
runner_v2  The same in the V2 model runner
prefixes   Alpha joins the hash of cached prefixes
"""

__all__ = ["register"]

ARCHITECTURE = "ControlLLMForCausalLM"


def register() -> None:
    """Tell vLLM of the model class; called by vLLM itself, more than once in a process."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    import controlllm
    from controlllm.integrations.vllm.checks import EngineChecks
    from controlllm.integrations.vllm.prefixes import salt_prefixes

    controlllm.register()
    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = EngineChecks
    salt_prefixes()
