"""Several sidecars, each with a name, on one base that is loaded once."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.apart import Apart, joined_parts, saved_apart
from controlllm.checkpoint.models.load_options import LoadOptions
from controlllm.checkpoint.models.loading import load_model
from controlllm.checkpoint.models.locate import Kind, Location, form_in, locate
from controlllm.checkpoint.training.manifest import verify_manifest
from controlllm.checkpoint.training.saved import KINDS
from controlllm.checkpoint.training.shards import map_joined
from controlllm.common.adapters import carries_base
from controlllm.common.errors import ConfigError
from controlllm.common.storage.remote import is_remote
from controlllm.expansion.files.records import read_sidecar_config
from controlllm.expansion.hub.several import load_sidecars
from controlllm.expansion.hub.sidecars import SidecarsForCausalLM
from controlllm.expansion.method.expansion_config import ExpansionConfig

__all__ = ["load_named"]


def load_named(
    base: str | Path, sidecars: Mapping[str, str], options: LoadOptions | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Load a base, and put sidecars on it; `load_model` where there are none.

    Args:
        base: what `load_model` takes; with sidecars a model that carries none itself, without
            them also one that was saved with its named sidecars.
        sidecars: by name, what `load_model` takes as a sidecar: its folder, a checkpoint, a run
            (its best checkpoint, else its newest), an address, a name on the Hub; there the newest,
            or the branch, tag or commit behind an @: `someone/maths@v2`.
        options: how the base is loaded, and its `revision`.

    Returns:
        The model in evaluation mode, with several sidecars all of them off; its tokenizer; and for
        each sidecar the dial that it was saved with (None = as trained).

    Raises:
        ConfigError: the base is tuned itself, a sidecar is none, or an option has no place.
        CheckpointError, ModelError: as `load_model` and `load_sidecars`.
    """
    options = options or LoadOptions()
    if not sidecars:
        model, tokenizer = load_model(base, options)
        own = model.expansions if isinstance(model, SidecarsForCausalLM) else {}
        return model, tokenizer, {name: expansion.dial for name, expansion in own.items()}
    if options.quantize_copies is not None:
        raise ConfigError("load.quantize_copies: not for several sidecars; leave it out.")
    found = {name: _found(name, place, options) for name, place in sidecars.items()}
    model, tokenizer = load_model(base, options)
    if carries_base(model):
        raise ConfigError(
            f"sidecars: {base} is tuned itself; give the base that they were trained on as the "
            "model, and it as one of the sidecars."
        )
    folders = {name: one.folder for name, one in found.items()}
    dials = {
        name: ExpansionConfig.from_dict(read_sidecar_config(folder)["expansion"]).dial
        for name, folder in folders.items()
    }
    device: Any = model.device
    with ExitStack() as stack:
        joined = {
            name: stack.enter_context(joined_parts(one.location, options))
            for name, one in found.items()
        }
        tensors = {name: map_joined(whole) for name, whole in joined.items() if whole is not None}
        named = load_sidecars(model, folders, options.check_base, tensors)
    named.to(device)
    return named, tokenizer, dials


class _Found(NamedTuple):
    """A sidecar: where it lies, and its folder on this machine."""

    location: Location
    folder: Path


def _found(name: str, place: str, options: LoadOptions) -> _Found:
    """A sidecar's files, whole (CheckpointError); ConfigError if it is something else."""
    place, revision = _with_revision(place)
    location = locate(place, options.storage_options)
    if revision is not None and location.kind is not Kind.HUB:
        raise ConfigError(
            f"sidecars.{name}: @{revision} is a revision on the Hub, and {place} is a folder here; "
            "leave it out."
        )
    if location.kind is Kind.CHECKPOINT:
        verify_manifest(Path(location.path))
    apart = saved_apart(location, revision)
    if apart is None or apart.kind is not KINDS["control"]:
        raise ConfigError(
            f"sidecars.{name}: {place} is a {_form(location, apart)}, not a sidecar; give it as "
            "the model, without sidecars."
        )
    return _Found(location, apart.folder)


def _with_revision(place: str) -> tuple[str, str | None]:
    """A name on the Hub and its revision, if one stands behind an @; folders may have one, too."""
    name, _, revision = str(place).rpartition("@")
    if not name or not revision or is_remote(place) or Path(place).exists():
        return place, None
    return name, revision


def _form(location: Location, apart: Apart | None) -> str:
    """What lies there, in words."""
    form = form_in(Path(location.path) if apart is None else apart.folder)
    return (form or location.kind).value
