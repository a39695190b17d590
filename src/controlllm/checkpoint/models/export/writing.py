"""`export`: a model in any of its forms, with all that is needed to use it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.export import (
    adapter,
    collapsed,
    full,
    gguf,
    lora,
    sidecar,
    unrolled,
)
from controlllm.checkpoint.models.export.forms import Form, make_form
from controlllm.checkpoint.models.locate import Kind, locate
from controlllm.common.quiet import quiet_bars, quiet_imports
from controlllm.common.storage.checksums import write_checksums
from controlllm.common.storage.files import (
    as_usual,
    atomic_folder,
    folder_bytes,
    require_empty,
    require_writable,
)
from controlllm.common.storage.tensor_files import require_numbers
from controlllm.common.text.progress import Progress, progress

__all__ = ["export", "require_free"]

_BUILT_IN = (adapter, collapsed, full, gguf, lora, sidecar, unrolled)
"""Each registers its form in `FORMS`."""


def export(
    model: PreTrainedModel,
    folder: str | Path,
    form: str | Form = "full",
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
        form: a name in `FORMS`, or a form with its options, `Sidecar()`: docs/exports.md says what
            each is for.
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
    chosen = make_form(form) if isinstance(form, str) else form
    require_free(folder, overwrite)
    require_numbers(model.named_parameters(), "the model")
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        with _shown(temporary, chosen, model), quiet_imports(), quiet_bars():
            chosen.write(model, temporary, tokenizer, inplace)
        if tokenizer is not None and chosen.tokenizer_beside:
            tokenizer.save_pretrained(temporary)
        for weights in temporary.glob("*.safetensors"):
            as_usual(weights)
        write_checksums(temporary)
    return Path(folder)


@contextmanager
def _shown(folder: Path, form: Form, model: PreTrainedModel) -> Iterator[None]:
    """Show how many bytes there are by now, of about how many."""
    done = Event()
    total = sum(p.nbytes for p in model.parameters() if p.requires_grad or not form.trained_only)

    def watch(line: Progress) -> None:
        while not done.wait(0.5):
            with suppress(OSError):  # A file may get another name at this moment.
                line.show(min(folder_bytes(folder), total) / 1e6)

    with progress(f"writing the {type(form).__name__.lower()} form", "MB", total / 1e6) as line:
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
    path = Path(folder)
    require_writable(path, folder=True)
    if overwrite and path.is_dir() and any(path.iterdir()) and _holds_model(path):
        return
    require_empty(path)


def _holds_model(path: Path) -> bool:
    """Whether a folder holds a model that was exported."""
    replaceable = (Kind.SIDECAR, Kind.ADAPTER, Kind.EXPANDED, Kind.PLAIN)
    return (path / gguf.GGUF_FILE).is_file() or locate(path).kind in replaceable
