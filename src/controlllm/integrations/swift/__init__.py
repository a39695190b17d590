"""A plugin for ms-swift: the tuner `controlllm` expands the base in place of LoRA.

    swift sft --external_plugins "$(python -m controlllm.integrations.swift)" \
        --tuner_type controlllm --callbacks controlllm \
        --model_kwargs '{"controlllm": {"num_blocks": 8, "interpolator": "lerp"}}' ...

Written for the tuner interface of ms-swift 4.6.0; docs/integrations/swift.md has a whole config. A
package, because swift puts the plugin's folder first on Python's path: beside our other
integrations, `axolotl.py` and the like would hide the packages of these names.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

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
    Tuner = object
else:
    Tuner = plugin_base("swift.tuner_plugin", "Tuner")

__all__ = ["ControlLLMSwiftCallback", "ControlLLMTuner", "register"]

NAME = "controlllm"


class ControlLLMTuner(Tuner):
    """Expands the base for training, and loads and saves what was trained as a sidecar.

    Settings are swift's `model_kwargs`, under the key `controlllm`: see `PluginSettings`.
    """

    @staticmethod
    def prepare_model(args: Any, model: PreTrainedModel) -> ControlLLMForCausalLM:
        """Expand the base that swift has loaded by its `SftArguments`.

        Raises:
            ConfigError: for a setting that is not known or cannot work, or without our callback.
            ModelError: if the base cannot be expanded.
        """
        if NAME not in (args.callbacks or ()):
            raise ConfigError(
                f"--tuner_type {NAME} also needs --callbacks {NAME}: without it checkpoints could "
                "not be resumed, and losses of swift's own would count the divergence wrongly."
            )
        _refuse_sharding(args)
        kwargs = args.model_kwargs or {}
        settings = PluginSettings.read(kwargs.get(NAME), f"model_kwargs.{NAME}")
        if settings.checkpoints == "full":
            raise ConfigError(
                "checkpoints='full' is axolotl's; swift's tuners save what was trained. "
                "`controlllm export CHECKPOINT/sidecar FOLDER` writes a whole model."
            )
        return open_expanded(model, settings)

    @staticmethod
    def from_pretrained(
        model: PreTrainedModel, model_id: str, **kwargs: Any
    ) -> ControlLLMForCausalLM:
        """Put a checkpoint's or any other sidecar on the base: to infer, go on, or begin from it.

        Whatever swift's `is_trainable` says, the frozen parts stay frozen.

        Raises:
            ConfigError: for a second adapter (`--ref_adapters`).
            CheckpointError: if there is no sidecar, or its base is another one.
        """
        if "adapter_name" in kwargs:
            raise ConfigError(
                f"adapter_name={kwargs['adapter_name']!r}: a model holds one expansion; the base "
                "itself, or a collapsed model, can be the reference (--ref_model)."
            )
        return open_expanded(model, PluginSettings(), model_id)

    @staticmethod
    def save_pretrained(
        model: PreTrainedModel,
        save_directory: str,
        state_dict: dict[str, Tensor] | None = None,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write the sidecar of a checkpoint, `save_directory/sidecar`.

        Raises:
            ConfigError: for anything but safetensors.
            CheckpointError: if it cannot be written.
        """
        if not safe_serialization:
            raise ConfigError("safe_serialization=False: sidecars are written as safetensors only.")
        write_into(PluginCallback.find_expanded(model), save_directory, state_dict)


class ControlLLMSwiftCallback(PluginCallback):
    """Tells the model of accumulation, and lets the trainer that is made resume from sidecars."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__()
        SidecarCheckpoints(trainer, saves=False)


def register() -> None:
    """Make tuner and callback known to swift under the name `controlllm`."""
    from swift.callbacks import callbacks_map
    from swift.tuner_plugin import tuners_map

    tuners_map[NAME] = ControlLLMTuner
    callbacks_map[NAME] = ControlLLMSwiftCallback


def _refuse_sharding(args: Any) -> None:
    for key in ("deepspeed", "fsdp", "quant_method"):
        if getattr(args, key, None):
            raise ConfigError(
                f"--{key} with --tuner_type {NAME} fails: sidecars are made of whole, unpacked "
                "parameters; use one process or DDP, and a base that is not quantised."
            )
