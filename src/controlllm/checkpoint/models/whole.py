"""A whole model by transformers, of which nothing is missing: a folder's or a name's on the Hub.

transformers fills what a folder lacks with random numbers and goes on. Here that is an error with
the tensor's name, as is a weight that is not a number.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint.models.load_options import LoadOptions
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.packages.bitsandbytes import bnb_config
from controlllm.common.quiet import quiet_bars, quiet_imports
from controlllm.common.registry import few
from controlllm.common.storage.checksums import verify_checksums
from controlllm.common.storage.tensor_files import require_numbers
from controlllm.common.storage.tensor_headers import require_file
from controlllm.common.text.names import DATA_PATTERNS
from controlllm.expansion.files.base_files import file_of
from controlllm.expansion.files.records import read_model_file
from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.expansion.surgery.quantised import settle

__all__ = [
    "check_files",
    "download",
    "file_on_hub",
    "from_pretrained",
    "load_whole",
    "require_rows",
]

_MOST_BYTES = 2**30
"""Of a file that transformers reads as a whole: tokenizers of 260,000 tokens have some 40 MB."""
_READ_WHOLE = (".json", ".jinja", ".model", ".txt", ".yaml")


def load_whole(name: str, options: LoadOptions) -> PreTrainedModel:
    """A model with all of its weights; safetensors only.

    Raises:
        CheckpointError: it cannot be loaded, a weight is missing, damaged or not a number.
        ConfigError: it is a full expanded model, and `quantize_base` is set.
    """
    check_files(name, options.revision)
    if Path(name).is_dir():
        verify_checksums(name)
    settings: dict[str, Any] = {"dtype": options.dtype, "use_safetensors": True}
    settings["ignore_mismatched_sizes"] = True  # They are told below, by their names.
    if options.attn_implementation:
        settings["attn_implementation"] = options.attn_implementation
    if options.quantize_base:
        compute = torch.float32 if options.dtype == "auto" else getattr(torch, options.dtype)
        config = from_pretrained(AutoConfig.from_pretrained, name, options)
        if isinstance(config, ControlLLMConfig):
            raise ConfigError(
                f"quantize_base={options.quantize_base}, but {name} is a full expanded model: what "
                "it has learned would be quantised, too. Load its sidecar onto the base instead."
            )
        settings["quantization_config"] = bnb_config(options.quantize_base, compute)
    load = AutoModelForCausalLM.from_pretrained
    model, found = from_pretrained(load, name, options, output_loading_info=True, **settings)
    for key, saved, own in sorted(found["mismatched_keys"]):
        raise CheckpointError(
            f"{name}: {key} has shape {tuple(saved)} in its files, and {tuple(own)} by its "
            "config.json: they are of two models. Copy or download it again."
        )
    if made_up := found["missing_keys"]:
        raise CheckpointError(
            f"{name} lacks the weights of {few(sorted(made_up))}, which would be random "
            "numbers: its files are not those of its config.json. Copy or download it again."
        )
    require_numbers(model.named_parameters(), name)
    settle(model)
    return cast(PreTrainedModel, model)


def check_files(name: str, revision: str | None = None) -> None:
    """Check, before transformers reads them, a model's config and the sizes of its small files.

    Raises:
        CheckpointError: a field of the config does not fit, or a file is absurdly large.
    """
    config = Path(name) / "config.json" if Path(name).is_dir() else None
    if config is None:
        config = file_on_hub(name, "config.json", revision)
    if config is None:
        return
    for file in config.parent.iterdir():
        if file.suffix == ".jinja":
            _refuse_link(file)
        if file.suffix == ".safetensors":
            require_file(file)
        if file.suffix in _READ_WHOLE and file.is_file() and file.stat().st_size > _MOST_BYTES:
            raise CheckpointError(
                f"{file} has {file.stat().st_size:,} bytes, more than such a file ever needs; it "
                "is not read."
            )
    if config.is_file():
        read_model_file(config.parent)


def _refuse_link(template: Path) -> None:
    """A chat template that is a link could say any file of this machine to the model."""
    folder, target = template.parent.resolve(), template.resolve()
    blobs = folder.parent.parent / "blobs"  # Where the Hub's cache has the files of a snapshot.
    if template.is_symlink() and not (target.is_relative_to(folder) or target.parent == blobs):
        raise CheckpointError(
            f"{template} is a link to a file outside of its folder, and is not read; put a copy of "
            "the template in its place."
        )


def file_on_hub(name: str, file: str, revision: str | None = None) -> Path | None:
    """The local copy of a file on the Hub; None if it is not there, or the Hub does not answer.

    Raises:
        CheckpointError: the Hub refuses, or `name` is neither a folder nor a Hub name.
    """
    try:
        return file_of(name, file, revision)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} cannot be loaded: {_first_line(error)}") from error


def download(name: str, revision: str | None = None, code: bool = False) -> Path:
    """The local copy of a Hub repository's data, with `code` its modules too (CheckpointError)."""
    from huggingface_hub import snapshot_download

    patterns = [*DATA_PATTERNS, *(["*.py"] if code else [])]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(f"{name} cannot be downloaded: {_first_line(error)}") from error


def from_pretrained(
    load: Callable[..., Any], name: str, options: LoadOptions, **settings: Any
) -> Any:
    """Call a `from_pretrained`; whatever it raises becomes a `CheckpointError`."""
    try:
        with quiet_imports(), quiet_bars():
            return load(
                name,
                revision=options.revision,
                trust_remote_code=options.trust_remote_code,
                **settings,
            )
    except (Exception, CheckpointException) as error:
        raise CheckpointError(
            f"{name} cannot be loaded: {_first_line(error)} (Neither a whole model folder nor a "
            "name that the Hub gives; for a private model log in with `hf auth login`.)"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]


def require_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with tokens that the model has no row for.

    Tokens that were added and that no text becomes pass (a placeholder of images, say): those of no
    chat template that are not BOS, EOS, PAD or the like.

    Raises:
        CheckpointError: with the token, its id and the model's rows.
    """
    rows = getattr(model.config.get_text_config(decoder=True), "vocab_size", None)
    if rows is None:
        return
    beyond = {token: id_ for token, id_ in tokenizer.get_vocab().items() if id_ >= rows}
    named = {str(value) for value in tokenizer.special_tokens_map.values()}
    added, template = tokenizer.get_added_vocab() if beyond else {}, str(tokenizer.chat_template)
    for token, id_ in sorted(beyond.items(), key=lambda item: item[1]):
        if token not in added or token in template or token in named:
            name = model.config.name_or_path or type(model).__name__
            raise CheckpointError(
                f"the tokenizer's token {token!r} has id {id_}, but the embedding of {name} has "
                f"rows 0 to {rows - 1} only: use the tokenizer that the model was made with "
                "(`tokenizer_name_or_path`), or resize the model first "
                "(model.resize_token_embeddings)."
            )
