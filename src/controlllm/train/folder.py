"""The run folder: who may write into it, and what a run finds there.

    output_dir/
      config.yaml         the resolved config; the run can be repeated from it
      tokenizer.json ...  the tokenizer, with the chat template that was trained
      metrics.jsonl       tensorboard/     (logging.report_to)
      checkpoint-{step}/  best.json        (controlllm.checkpoint)
      rehearsal/          what the base wrote, by content

A folder is never taken over by mistake: it must be empty, or hold this very run, or the user
says so.
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from controlllm.checkpoint import list_checkpoints, resolve_checkpoint
from controlllm.common.errors import ConfigError
from controlllm.common.files import write_text
from controlllm.train.config import RunConfig
from controlllm.train.config_io import read_yaml

__all__ = ["open_run_folder"]

CONFIG = "config.yaml"
_WRITTEN = (
    *("checkpoint-*", "best.json", "metrics.jsonl", "tensorboard", "wandb.json", CONFIG),
    *("tokenizer*.json", "special_tokens_map.json", "chat_template.jinja"),
)
_MAY_CHANGE = (
    # How long, how often and where to: a run may go on with other values of these.
    "preset",
    "logging",
    "model.device",
    *(
        f"training.{name}"
        for name in (
            "output_dir",
            "overwrite_output_dir",
            "max_tokens",
            "max_seconds",
            "eval_steps",
            "save_steps",
            "save_total_limit",
            "resume_from_checkpoint",
            "max_forgetting",
            "stop_on_budget",
            "per_device_eval_batch_size",
        )
    ),
)


def open_run_folder(run: RunConfig) -> Path | None:
    """Take the run folder and write `config.yaml` into it.

    Returns:
        The checkpoint to resume from, or None to start from the beginning.

    Raises:
        ConfigError: if the folder holds something else, or this run with another config.
        CheckpointError: if the checkpoint asked for is not whole.
    """
    training = run.training
    folder = Path(training.output_dir)
    if training.overwrite_output_dir:
        _clear(folder)
    checkpoint = _find_checkpoint(folder, run)
    if checkpoint is None and not training.overwrite_output_dir:
        _require_fresh(folder, training.resume_from_checkpoint)
    write_text(folder / CONFIG, yaml.safe_dump(run.to_dict(), sort_keys=False, allow_unicode=True))
    return checkpoint


def _find_checkpoint(folder: Path, run: RunConfig) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means, once it is sure that it fits."""
    resume = run.training.resume_from_checkpoint
    if resume == "never":
        return None
    checkpoint = resolve_checkpoint(folder, resume)
    if checkpoint is None:
        return None
    changes = list(_changes(checkpoint.parent / CONFIG, run))
    if changes and resume == "auto":
        raise ConfigError(
            f"{folder} holds a run with another config: {'; '.join(changes)}. Choose another "
            "training.output_dir, set training.overwrite_output_dir=true to start afresh, or name "
            f"the checkpoint to go on with: training.resume_from_checkpoint={checkpoint}."
        )
    if changes:
        warnings.warn(
            f"Resuming {checkpoint} with another config: {'; '.join(changes)}.", stacklevel=3
        )
    if resume != "auto":
        _require_newest(folder, checkpoint)
    return checkpoint


def _require_newest(folder: Path, checkpoint: Path) -> None:
    """Two histories in one folder would make `auto` resume the wrong one."""
    others = list_checkpoints(folder)
    if others and others[-1].resolve() != checkpoint.resolve():
        raise ConfigError(
            f"{folder} holds {others[-1].name}, which is not the checkpoint to resume from "
            f"({checkpoint}); choose another training.output_dir, or remove what comes after it."
        )


def _require_fresh(folder: Path, resume: str) -> None:
    """Nothing is there, or only what a run of ours writes before its first checkpoint."""
    if folder.is_file():
        raise ConfigError(f"training.output_dir={str(folder)!r} is a file; choose a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    began = (folder / CONFIG).is_file() and not list_checkpoints(folder)
    if not (began and resume == "auto"):
        raise ConfigError(
            f"training.output_dir={str(folder)!r} is not empty and there is nothing to resume; "
            "choose another folder, or set training.overwrite_output_dir=true."
        )


def _clear(folder: Path) -> None:
    """Remove what an earlier run wrote; files of others stay."""
    for pattern in _WRITTEN:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _changes(path: Path, run: RunConfig) -> Iterator[str]:
    """What differs between the config of the run that is there and this one."""
    if not path.is_file():
        return
    before, now = dict(_flat(read_yaml(path))), dict(_flat(run.to_dict()))
    for key in before.keys() | now.keys():
        may_change = any(key == name or key.startswith(f"{name}.") for name in _MAY_CHANGE)
        if before.get(key) != now.get(key) and not may_change:
            yield f"{key} was {before.get(key)!r}, is {now.get(key)!r}"


def _flat(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value
