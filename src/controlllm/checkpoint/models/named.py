"""Several sidecars, each with a name, on one base that is loaded once."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.load_options import LoadOptions
from controlllm.checkpoint.models.loading import load_model
from controlllm.checkpoint.models.locate import Kind, locate
from controlllm.checkpoint.training.manifest import verify_manifest
from controlllm.common.errors import ConfigError
from controlllm.expansion.files.records import read_sidecar_config
from controlllm.expansion.hub.several import load_sidecars
from controlllm.expansion.method.expansion_config import ExpansionConfig

__all__ = ["load_named"]


def load_named(
    base: str | Path, sidecars: Mapping[str, str], options: LoadOptions | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Load a base, and put sidecars on it; `load_model` where there are none.

    Args:
        base: what `load_model` takes; with sidecars a plain model.
        sidecars: sidecar folders, checkpoints or runs (their best checkpoint), by name.
        options: how the base is loaded.

    Returns:
        The model in evaluation mode, with several sidecars all of them off; its tokenizer; and for
        each sidecar the dial that it was saved with (None = as trained).

    Raises:
        ConfigError: the base is expanded itself, a sidecar is none, or an option has no place.
        CheckpointError, ModelError: as `load_model` and `load_sidecars`.
    """
    options = options or LoadOptions()
    if not sidecars:
        return *load_model(base, options), {}
    folders = {name: _folder(name, path, options) for name, path in sidecars.items()}
    if options.quantize_copies is not None:
        raise ConfigError("load.quantize_copies: not for several sidecars; leave it out.")
    model, tokenizer = load_model(base, replace(options, base=None))
    if hasattr(model, "set_alpha"):
        raise ConfigError(
            f"{base} is expanded itself: name the base as the model, and it as one of the sidecars."
        )
    dials = {
        name: ExpansionConfig.from_dict(read_sidecar_config(folder)["expansion"]).dial
        for name, folder in folders.items()
    }
    device: Any = model.device
    named = load_sidecars(model, folders, options.check_base)
    named.to(device)
    return named, tokenizer, dials


def _folder(name: str, path: str, options: LoadOptions) -> str:
    """The folder of a sidecar's files, whole."""
    location = locate(path, options.storage_options)
    if location.kind is Kind.CHECKPOINT:
        verify_manifest(Path(location.path))
    elif location.kind is not Kind.SIDECAR:
        raise ConfigError(f"sidecars.{name}: {path} is a {location.kind.value}, not a sidecar.")
    return location.path
