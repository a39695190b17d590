"""What is refused when the engine's configuration is made, before anything is loaded."""

from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from controlllm.common.errors import ConfigError
from controlllm.expansion.method.expansion_config import ExpansionConfig
from controlllm.integrations.vllm.names import variant_name
from controlllm.integrations.vllm.prefixes import prefixes_are_salted
from controlllm.integrations.vllm.rows import sidecar_names

__all__ = ["REFUSED", "EngineChecks"]

REFUSED: dict[str, tuple[Any, str]] = {
    "parallel_config.pipeline_parallel_size": (
        1,
        "a copy's KV cache would lie on another stage than its block; use --tensor-parallel-size",
    ),
    "parallel_config.use_ubatching": (False, "alphas of micro-batches are not kept apart"),
    "model_config.quantization": (None, "interpolators and expanded ends are not quantised"),
    "lora_config": (None, "vLLM's LoRA layers were not tried on the two branches of a block"),
    "speculative_config": (None, "drafted tokens would be checked at no request's alpha"),
    "compilation_config.pass_config.enable_sp": (False, "each rank would see a part of the tokens"),
}
"""What the engine can be asked for that expanded models cannot do: its plain value, and why."""

COMPILES = (("concat", "lerp"), ("concat", "dlerp"), ("stack", "lerp"), ("hybrid", "lerp"))
"""Structure and interpolator that were seen to be right when compiled (docs/results/vllm.md)."""

RUNNERS = {False: "runner_v1:RequestAlphas", True: "runner_v2:RequestWords"}
"""By `use_v2_model_runner`, what takes alpha from requests."""


class EngineChecks(VerifyAndUpdateConfig):
    """vLLM asks it for every engine that shall run an expanded model."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        """Refuse what cannot work, and let the engine take alpha from requests.

        Raises:
            ConfigError: with the setting, its value and the reason.
        """
        for path, (plain, reason) in REFUSED.items():
            value = _look_up(vllm_config, path)
            if value not in (plain, None):
                raise ConfigError(
                    f"vLLM cannot serve an expanded model with {path}={_short(value)}: {reason}."
                )
        config = vllm_config.model_config.hf_config
        for expansion in expansions_of(config):
            _check_expansion(expansion, compiled=not vllm_config.model_config.enforce_eager)
        if vllm_config.cache_config.enable_prefix_caching and not prefixes_are_salted():
            raise ConfigError(
                "This version of vLLM hashes cached prefixes in a way that the plugin does not "
                "know, and requests at different alphas would share them. Add "
                "--no-enable-prefix-caching."
            )
        runner = RUNNERS[bool(vllm_config.use_v2_model_runner)]
        wanted = f"{__package__}.{variant_name(runner, sidecar_names(config))}"
        processors = [*(vllm_config.model_config.logits_processors or ())]
        if wanted not in processors:
            vllm_config.model_config.logits_processors = [*processors, wanted]


def expansions_of(config: Any) -> list[ExpansionConfig]:
    """How the base was expanded, for each sidecar where they have names."""
    named = [one["expansion"] for one in getattr(config, "sidecars", ())]
    return [ExpansionConfig.from_dict(values) for values in named or [config.expansion]]


def _check_expansion(expansion: ExpansionConfig, compiled: bool) -> None:
    if expansion.relaxed_norm is not None:
        raise ConfigError(
            f"vLLM cannot serve relaxed_norm={expansion.relaxed_norm!r}: it replaces the norms "
            "that this blends. Serve it with `controlllm serve` (--engine local)."
        )
    made = (expansion.structure, expansion.interpolator)
    if compiled and made not in COMPILES:
        known = ", ".join(" with ".join(one) for one in COMPILES)
        raise ConfigError(
            f"Compiled by vLLM, {made[0]} with {made[1]} was never seen to write the right tokens, "
            f"only {known} were. Add --enforce-eager."
        )


def _look_up(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _short(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | str) else type(value).__name__
