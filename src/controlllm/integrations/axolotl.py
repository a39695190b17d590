"""A plugin for axolotl: the adapter `controlllm` expands the base in place of LoRA.

    plugins: [controlllm.integrations.axolotl.ControlLLMPlugin]
    adapter: controlllm
    controlllm: {num_blocks: 8, interpolator: lerp, divergence: mse}

Written for the plugin interface of axolotl 0.19.0; docs/integrations/axolotl.md has a whole config.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from transformers import PreTrainedModel, TrainerCallback

from controlllm.common.errors import ConfigError
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.integrations.neighbours import (
    PluginCallback,
    PluginSettings,
    SidecarCheckpoints,
    open_expanded,
    plugin_base,
    write_into,
)

if TYPE_CHECKING:
    BasePlugin = object
else:
    BasePlugin = plugin_base("axolotl.integrations.base", "BasePlugin")

__all__ = ["ControlLLMArgs", "ControlLLMPlugin"]

ADAPTER = "controlllm"

REFUSED = {
    "fsdp": "its parts of parameters make no sidecar",
    "fsdp_config": "its parts of parameters make no sidecar",
    "deepspeed": "its parts of parameters make no sidecar",
    "load_in_8bit": "copies of packed weights were not tried under axolotl",
    "load_in_4bit": "copies of packed weights were not tried under axolotl",
    "rl": "axolotl takes the reference model from PEFT, which an expanded model does not need",
    "relora": "there is no low-rank part to restart",
    "merge_lora": "`controlllm export OUTPUT_DIR FOLDER --form collapsed` folds it into the base",
}
"""What axolotl can be asked for that this adapter cannot do, and why."""


class ControlLLMArgs(BaseModel):
    """What the plugin adds to axolotl's YAML."""

    controlllm: dict[str, Any] | None = None
    """See `PluginSettings`; the plugin checks it, so that its own errors are seen."""


class ControlLLMPlugin(BasePlugin):
    """Expands the base, keeps the divergence right, and keeps sidecars as checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self._finished = False

    def register(self, cfg: Mapping[str, Any]) -> None:
        """Check the YAML before anything is loaded.

        Raises:
            ConfigError: for a setting that is not known or cannot work, or one of axolotl's that
                this adapter cannot do.
        """
        if cfg.get("adapter") != ADAPTER:
            if cfg.get("controlllm") is not None:
                raise ConfigError(
                    f"there are controlllm settings, but adapter={cfg.get('adapter')!r}; set "
                    f"adapter: {ADAPTER}."
                )
            return
        _settings(cfg)
        for key, reason in REFUSED.items():
            if cfg.get(key):
                raise ConfigError(f"{key}={cfg[key]!r} with adapter: {ADAPTER} fails: {reason}.")

    def get_input_args(self) -> str:
        """Where axolotl finds the model of the settings."""
        return f"{__name__}.{ControlLLMArgs.__name__}"

    def get_adapter_capabilities(self) -> list[Any]:
        """The name that `adapter:` may have."""
        from axolotl.integrations.base import AdapterCapabilities

        return [AdapterCapabilities(name=ADAPTER)]

    def load_adapter(
        self,
        model: PreTrainedModel,
        cfg: Mapping[str, Any],
        inference: bool = False,
        config_only: bool = False,
    ) -> tuple[ControlLLMForCausalLM, None] | None:
        """Expand the base; with `lora_model_dir`, put the sidecar there on it.

        Returns:
            The expanded model and no PEFT config; None for other adapters.

        Raises:
            ConfigError: if axolotl asks for a config without a model, or to infer without a
                sidecar.
            CheckpointError, ModelError: if the sidecar or the base does not fit.
        """
        if cfg.get("adapter") != ADAPTER:
            return None
        if config_only:
            raise ConfigError(
                f"adapter: {ADAPTER} fails with rl={cfg.get('rl')!r}: there is no PEFT config."
            )
        sidecar = cfg.get("lora_model_dir")
        if sidecar is None and (inference or cfg.get("inference")):
            raise ConfigError(
                "an untrained expansion computes the same as the base; add --lora-model-dir "
                "and the run's output_dir (or a checkpoint, or a sidecar)."
            )
        self._finished = False
        return open_expanded(model, _settings(cfg), sidecar), None

    def add_callbacks_pre_trainer(
        self, cfg: Mapping[str, Any], model: PreTrainedModel
    ) -> list[TrainerCallback]:
        """The callback that tells the model of gradient accumulation."""
        if cfg.get("adapter") != ADAPTER:
            return []
        return [PluginCallback(beside=_settings(cfg).checkpoints == "full")]

    def post_trainer_create(self, cfg: Mapping[str, Any], trainer: Any) -> None:
        """Let checkpoints be sidecars, and be resumed from."""
        if cfg.get("adapter") == ADAPTER:
            SidecarCheckpoints(trainer, saves=_settings(cfg).checkpoints == "sidecar")

    def post_train(self, cfg: Mapping[str, Any], model: PreTrainedModel) -> None:
        """Write the last sidecar into `output_dir`; axolotl writes the whole model there."""
        # axolotl calls this twice: when the training has ended, and when all is saved.
        if cfg.get("adapter") != ADAPTER or self._finished:
            return
        self._finished = True
        if not cfg.get("local_rank"):
            write_into(PluginCallback.find_expanded(model), Path(cfg["output_dir"]))


def _settings(cfg: Mapping[str, Any]) -> PluginSettings:
    return PluginSettings.read(cfg.get("controlllm"), "controlllm")
