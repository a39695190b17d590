"""vLLM: a plugin that serves expanded models, alpha and sidecar chosen by each request.

    pip install ./controlllm vllm  # a checkout or a wheel
    controlllm export RUN my-model --form full
    vllm serve my-model            # requests: {"vllm_xargs": {"alpha": 0.3}, ...}

vLLM finds the plugin by its entry point (`vllm.general_plugins`) and calls `register` in each of
its processes. Nothing here imports vLLM before it does.

words      What a request may say of alpha and sidecars, and what of it decides a cached prefix
names      The names of sidecars in the name of a class
rows       From the alphas of each request to those of each token of a forward pass
model      The model class on vLLM's transformers backend
head       The expanded LM head: all branches cut over the vocabulary
checks     What is refused when the engine's configuration is made
runner_v1  Alphas of each row in the V1 model runner
runner_v2  The same in the V2 model runner
inductor   A mend of torch's compiler on CPUs
prefixes   Alpha and sidecars join the hash of cached prefixes
"""

__all__ = ["register"]

MODEL = "ControlLLMForCausalLM"
ARCHITECTURES = (MODEL, "SidecarsForCausalLM")
"""What the config of a saved model may say that it is; one class serves all."""


def register() -> None:
    """Tell vLLM of the model classes; called by vLLM itself, more than once in a process."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    import controlllm
    from controlllm.integrations.vllm.checks import EngineChecks
    from controlllm.integrations.vllm.prefixes import salt_prefixes

    controlllm.register()
    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, f"{__name__}.model:{MODEL}")
        MODELS_CONFIG_MAP[architecture] = EngineChecks
    salt_prefixes()
