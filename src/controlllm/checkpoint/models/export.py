"""Take a trained model away: as a sidecar or adapter, in full, or collapsed into the base."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.locate import Kind, locate
from controlllm.checkpoint.training.kinds import HANDLERS
from controlllm.checkpoint.training.saved import BASE_RECORD, KINDS
from controlllm.common.adapters import has_adapters, merge_adapters
from controlllm.common.errors import ModelError
from controlllm.common.quiet import quiet_bars, quiet_imports
from controlllm.common.registry import Registry
from controlllm.common.storage.checksums import write_checksums
from controlllm.common.storage.files import (
    as_usual,
    atomic_folder,
    folder_bytes,
    require_empty,
    require_writable,
    save_tensors,
    write_json,
    write_text,
)
from controlllm.common.storage.tensor_files import require_numbers
from controlllm.common.text.progress import Progress, progress
from controlllm.expansion import collapse
from controlllm.expansion.files.card import model_card
from controlllm.expansion.files.sidecar import save_sidecar
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM

__all__ = ["FORMS", "export", "require_free"]

log = logging.getLogger(__name__)

FORMS: Registry[Callable[[PreTrainedModel, Path, bool], None]] = Registry("form")
"""How each form is written into an existing empty folder; the last argument is `inplace`."""


def export(
    model: PreTrainedModel,
    folder: str | Path,
    form: str = "full",
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    inplace: bool = False,
) -> Path:
    """Write a model with all that is needed to use it; the folder appears whole or not at all.

    `checksums.json` in it holds the SHA-256 of every file, which `load_model` checks.

    Args:
        model: an expanded model; `full` also takes a plain one, `full` and `adapter` a base with
            adapters.
        folder: where to; absent or empty, unless `overwrite`.
        form: `sidecar` (the trained tensors), `adapter` (those of a base with adapters, as PEFT
            writes them), `full` (base and trained parts, adapters merged: loads anywhere) or
            `collapsed` (folded by weight into the base's own class: an approximation).
        tokenizer: is saved beside the model.
        overwrite: replace a folder that holds a saved model, with all that lies in it.
        inplace: use the model up where that saves memory (`collapsed`, merged adapters); it is
            gone then.

    Raises:
        ConfigError: for an unknown form.
        CheckpointError: if the folder is not empty (with `overwrite`: and holds no saved model),
            the disk is full, or weights are not numbers.
        ModelError: if the model has no such form.
    """
    write = FORMS.get(form)
    require_free(folder, overwrite)
    require_numbers(model.named_parameters(), "the model")
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        with _shown(temporary, form, model), quiet_imports(), quiet_bars():
            write(model, temporary, inplace)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        for weights in temporary.glob("*.safetensors"):
            as_usual(weights)
        write_checksums(temporary)
    return Path(folder)


@contextmanager
def _shown(folder: Path, form: str, model: PreTrainedModel) -> Iterator[None]:
    """Show how many bytes there are by now, of about how many."""
    done, trained_only = Event(), form in ("sidecar", "adapter")
    total = sum(p.nbytes for p in model.parameters() if p.requires_grad or not trained_only)

    def watch(line: Progress) -> None:
        while not done.wait(0.5):
            with suppress(OSError):  # A file may get another name at this moment.
                line.show(min(folder_bytes(folder), total) / 1e6)

    with progress(f"writing the {form} form", "MB", total / 1e6) as line:
        watcher = Thread(target=watch, args=[line], daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def require_free(folder: str | Path, overwrite: bool = False) -> None:
    """Check that a model may be written to `folder`; anything but a saved model is never replaced.

    Raises:
        CheckpointError: if something is there that is not to be replaced, or the place cannot be
            written.
    """
    replaceable = (Kind.SIDECAR, Kind.ADAPTER, Kind.EXPANDED, Kind.PLAIN)
    path = Path(folder)
    require_writable(path, folder=True)
    if overwrite and path.is_dir() and any(path.iterdir()) and locate(path).kind in replaceable:
        return
    require_empty(path)


@FORMS.register("full")
def _write_full(model: PreTrainedModel, folder: Path, inplace: bool) -> None:
    """The whole model; an expanded one writes its own card and modelling file."""
    if has_adapters(model):
        model = model if inplace else copy.deepcopy(model)
        merge_adapters(model)
        if isinstance(model, ControlLLMForCausalLM):
            log.warning(
                "The adapters are merged into the frozen blocks: at alpha 0 this form computes the "
                "base with them. The form 'sidecar' keeps both apart."
            )
    model.save_pretrained(folder)


@FORMS.register("adapter")
def _write_adapter(model: PreTrainedModel, folder: Path, inplace: bool) -> None:
    """The adapters of a base, as PEFT reads them, and which base it was."""
    kind, handler = KINDS["adapters"], HANDLERS["adapters"]
    if isinstance(model, ControlLLMForCausalLM) or not handler.holds(model):
        raise ModelError(
            f"form='adapter' needs a base with adapters, and {type(model).__name__} is none; an "
            "expanded model's adapters are part of its 'sidecar'."
        )
    tensors = {name: t.detach().cpu().contiguous() for name, t in handler.tensors(model).items()}
    described = handler.describe(model)
    save_tensors(folder / kind.weights, tensors, {"format": "pt"})
    write_json(folder / kind.config, described["config"])
    write_json(folder / BASE_RECORD, described["base"])


@FORMS.register("sidecar")
def _write_sidecar(model: PreTrainedModel, folder: Path, inplace: bool) -> None:
    """The trained tensors with their config and card."""
    save_sidecar(_expanded(model, "sidecar"), folder)


@FORMS.register("collapsed")
def _write_collapsed(model: PreTrainedModel, folder: Path, inplace: bool) -> None:
    """The base's own class, the trained parts folded in."""
    expanded = _expanded(model, "collapsed")
    card = model_card(expanded.config, "collapsed")
    collapse(expanded, inplace).save_pretrained(folder)
    write_text(folder / "README.md", card)


def _expanded(model: PreTrainedModel, form: str) -> ControlLLMForCausalLM:
    if not isinstance(model, ControlLLMForCausalLM):
        raise ModelError(
            f"form={form!r} needs an expanded model, and {type(model).__name__} is none; "
            "export it in the form 'full'."
        )
    return model
