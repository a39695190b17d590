"""What the plugins of other trainers share: their settings, the model they open, its checkpoints.

A plugin reads its settings from the tool's own config, expands the base that the tool has loaded
(or puts a sidecar on it), and lets the tool's `transformers.Trainer` keep sidecars as checkpoints.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor
from transformers import PreTrainedModel

from controlllm.common.errors import CheckpointError, ConfigError, ModelError
from controlllm.common.registry import check_choice
from controlllm.common.tensors import copy_tensors
from controlllm.expansion import ExpansionConfig, expand, load_sidecar
from controlllm.expansion.files.packed import require_whole
from controlllm.expansion.files.records import SIDECAR_CONFIG, read_sidecar_config
from controlllm.expansion.files.sidecar import (
    base_fingerprint,
    read_sidecar_tensors,
    save_sidecar,
    sidecar_tensors,
)
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.integrations.callback import ControlLLMCallback

__all__ = [
    "PluginCallback",
    "PluginSettings",
    "SidecarCheckpoints",
    "find_sidecar",
    "open_expanded",
    "plugin_base",
    "write_into",
]

Checkpoints = Literal["sidecar", "full"]
FOLDER = "sidecar"
"""Where in a checkpoint its sidecar is, as `ControlLLMCallback` writes it."""

STATE = ("dial", "mean_alpha")
"""What a sidecar's config says of the trained model and not of how it was expanded."""


def plugin_base(module: str, name: str) -> type:
    """A class that a tool wants its plugins to extend.

    Where the tool is not installed it is `object`, so that the plugin's page of the API reference
    can be read.
    """
    try:
        found: type = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return object
    return found


@dataclass
class PluginSettings:
    """A tool's `controlllm` block: fields of `ExpansionConfig`, and those of the plugin."""

    expansion: dict[str, Any] = field(default_factory=dict)
    """The fields of `ExpansionConfig` that were given."""
    checkpoints: Checkpoints = "sidecar"
    """What the weights of a checkpoint are: `sidecar` (the trained tensors) or `full` (the whole
    model as the tool writes it, the sidecar beside it)."""
    check_base: bool = True  # refuse a sidecar of another base

    @classmethod
    def read(cls, values: object, where: str) -> "PluginSettings":
        """Check what stands in a tool's config, which calls it `where`; None = all defaults.

        Raises:
            ConfigError: for anything but a mapping, a key that is none of the settings (with the
                nearest one), or a value that cannot work.
        """
        values = {} if values is None else values
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{where}={values!r} is no mapping; write settings such as num_blocks: 8 into it."
            )
        own = ("checkpoints", "check_base")
        names = [*(f.name for f in fields(ExpansionConfig)), *own]
        for key in values:
            check_choice(f"{where} key", key, names)
        expansion = {k: _plain(v) for k, v in values.items() if k not in own}
        ExpansionConfig.from_dict(expansion)
        settings = cls(expansion, **{key: values[key] for key in own if key in values})
        check_choice(f"{where}.checkpoints", settings.checkpoints, get_args(Checkpoints))
        if not isinstance(settings.check_base, bool):
            raise ConfigError(f"{where}.check_base={settings.check_base!r}; allowed: true, false.")
        return settings


def open_expanded(
    model: PreTrainedModel, settings: PluginSettings, sidecar: str | Path | None = None
) -> ControlLLMForCausalLM:
    """Expand the model that a tool has loaded, or put a sidecar on it.

    The base's fingerprint is taken here, while its weights are whole: what is saved later needs
    the trained tensors only.

    Args:
        model: the tool's model, taken over; one that is expanded already stays as it is.
        settings: how; with a sidecar or an expanded model, what is given must be what they say.
        sidecar: a sidecar, or a folder that holds one (see `find_sidecar`).

    Raises:
        ConfigError: if settings contradict the sidecar or the expanded model.
        CheckpointError: if there is no sidecar, or its base is another one.
        ModelError: if the model cannot be expanded so.
    """
    if isinstance(model, ControlLLMForCausalLM):
        if sidecar is not None:
            raise ModelError(
                f"{sidecar} cannot be put on a model that is expanded already; name its base as "
                "the tool's model."
            )
        _check_agree(settings, model.config.expansion, "the model")
        expanded = model
    elif sidecar is not None:
        folder = find_sidecar(sidecar)
        _check_agree(settings, read_sidecar_config(folder)["expansion"], str(folder))
        expanded = load_sidecar(model, folder, settings.check_base)
    else:
        expanded = expand(model, ExpansionConfig.from_dict(settings.expansion))
    base_fingerprint(expanded)
    return expanded


def find_sidecar(folder: str | Path) -> Path:
    """The sidecar that a folder is, or that lies in its `sidecar` (a checkpoint, an output folder).

    Raises:
        CheckpointError: if there is none.
    """
    for place in (Path(folder), Path(folder) / FOLDER):
        if (place / SIDECAR_CONFIG).is_file():
            return place
    raise CheckpointError(
        f"{folder} holds no sidecar: neither {SIDECAR_CONFIG} nor {FOLDER}/{SIDECAR_CONFIG}. "
        "`controlllm export MODEL FOLDER --form sidecar` writes one from any expanded model."
    )


def write_into(
    model: ControlLLMForCausalLM, folder: str | Path, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write the sidecar of a checkpoint into its folder.

    Args:
        model: the expanded model.
        folder: the checkpoint; what else is there stays.
        state_dict: whole tensors by the model's own names, where the tool has gathered them;
            None = the model's own.

    Raises:
        CheckpointError: if trained tensors are missing in `state_dict`, or nothing can be written.
    """
    tensors = None
    if state_dict is not None:
        names = [f"{model.base_model_prefix}.{name}" for name in sidecar_tensors(model)]
        missing = [name for name in names if name not in state_dict]
        if missing:
            raise CheckpointError(
                f"the trainer did not gather {missing[0]} ({len(missing)} trained tensors are "
                f"missing), so {folder} cannot be written; train without sharded parameters."
            )
        tensors = {n.removeprefix(f"{model.base_model_prefix}."): state_dict[n] for n in names}
    save_sidecar(model, Path(folder) / FOLDER, overwrite=True, tensors=tensors)


class PluginCallback(ControlLLMCallback):
    """Tells the model of accumulation, and writes sidecars beside whole models where asked to."""

    def __init__(self, beside: bool = False) -> None:
        self.beside = beside

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Write the sidecar into the checkpoint's folder, if it is to have one."""
        if self.beside:
            super().on_save(*args, **kwargs)


class SidecarCheckpoints:
    """Lets one `transformers.Trainer` keep sidecars as the weights of its checkpoints.

    The frozen base would be the same in every checkpoint. Optimizer, schedule and random states
    stay the Trainer's own, so a run goes on as it would have.

    Args:
        trainer: gets methods of this object in place of its own for saving and loading weights.
        saves: whether saving is changed, too; False where the tool saves by itself.
    """

    def __init__(self, trainer: Any, saves: bool = True) -> None:
        self.trainer = trainer
        self._load, self._load_best = trainer._load_from_checkpoint, trainer._load_best_model
        trainer._load_from_checkpoint, trainer._load_best_model = self.load, self.load_best
        if saves:
            self._save = trainer._save
            trainer._save = self.save

    @property
    def model(self) -> ControlLLMForCausalLM:
        """The expanded model that trains.

        Raises:
            ModelError: its expansion is an adapter of PEFT, which PEFT saves.
        """
        return ControlLLMCallback.find_expanded(self.trainer.model)

    def load(self, folder: str, *args: Any, **kwargs: Any) -> None:
        """Put a checkpoint's weights into the model: those of its sidecar, if it has one.

        Raises:
            CheckpointError: if the sidecar is of another base or another expansion.
        """
        if not (Path(folder) / FOLDER / SIDECAR_CONFIG).is_file():
            self._load(folder, *args, **kwargs)
            return
        place, model = Path(folder) / FOLDER, self.model
        values = read_sidecar_config(place)
        require_whole(values, place)
        ours = base_fingerprint(model)
        if values["base"].get("fingerprint") != ours:
            raise CheckpointError(
                f"{place} was trained on another base (weights {values['base'].get('fingerprint')} "
                f"against {ours}); name the base that it was trained on."
            )
        given = {k: v for k, v in model.config.expansion.items() if k not in STATE}
        _check_agree(PluginSettings(given), values["expansion"], str(place))
        copy_tensors(sidecar_tensors(model), read_sidecar_tensors(place), str(place))

    def load_best(self) -> None:
        """Put the best checkpoint's weights into the model."""
        best = self.trainer.state.best_model_checkpoint
        if best is not None and (Path(best) / FOLDER / SIDECAR_CONFIG).is_file():
            self.load(best)
        else:
            self._load_best()

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save as the Trainer does, but the sidecar in place of the model."""
        model = self.model

        def save_pretrained(
            folder: str | Path,
            state_dict: dict[str, Tensor] | None = None,
            is_main_process: bool = True,
            **kwargs: Any,
        ) -> None:
            if is_main_process:
                write_into(model, folder, state_dict)

        # What the Trainer writes beside the weights (tokenizer, arguments) is its own affair.
        vars(model)["save_pretrained"] = save_pretrained
        try:
            self._save(*args, **kwargs)
        finally:
            del vars(model)["save_pretrained"]


def _check_agree(settings: PluginSettings, recorded: dict[str, Any], where: str) -> None:
    """Check that what was given is what a saved model says; nothing is overridden in silence."""
    given = ExpansionConfig.from_dict(settings.expansion).to_dict()
    saved = ExpansionConfig.from_dict(recorded).to_dict()
    for key in settings.expansion:
        if given[key] != saved[key]:
            raise ConfigError(
                f"{key}={given[key]!r} is asked for, but {where} was expanded with "
                f"{key}={saved[key]!r}; leave it out or give that."
            )


def _plain(value: Any) -> Any:
    """A tool's own kinds of dict and list as plain ones."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
