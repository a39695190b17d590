"""The run folder: who may write into it, and what a run finds there.

    output_dir/
      config.yaml         the resolved config without secrets; the run can be repeated from it
      tokenizer.json ...  the tokenizer, with the chat template that was trained
      metrics.jsonl       tensorboard/     (logging.report_to)
      checkpoint-{step}/  best.json        (controlllm.checkpoint)
      rehearsal/          what the base wrote to be rehearsed, by content
      own_text/           what it wrote to be measured, by content
      benchmarks/         answers to a suite of benchmarks (evaluation.suite)
      generation/         texts for held-out prompts, base and trained (evaluation.generation)
      .controlllm.lock    held while a run writes here, with a note of which process does

`training.remote_dir` is the same elsewhere. A folder is never taken over by mistake: it must be
empty, or hold this very run, or the user says so.
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from controlllm.checkpoint import (
    RemoteRun,
    checkpoint_step,
    fetch_files,
    fetch_newest,
    list_checkpoints,
    local_copy,
    resolve_checkpoint,
)
from controlllm.common.errors import CheckpointError, ConfigError
from controlllm.common.settings import settings_with
from controlllm.common.storage.held import LOCK
from controlllm.common.storage.remote import is_remote
from controlllm.common.text.secrets import redacted, without_options
from controlllm.common.text.yamls import parse_yaml
from controlllm.train.config.config_io import flat, read_yaml, write_yaml
from controlllm.train.config.run_config import RunConfig
from controlllm.train.config.training_config import TrainingConfig

__all__ = ["open_run_folder", "remote_run", "save_tokenizer"]

CONFIG = "config.yaml"
_WRITTEN = (
    *("checkpoint-*", "best.json", "metrics.jsonl", "tensorboard", "wandb.json", CONFIG),
    *("profile", "watchdog", "flight_recorder", "generation", "benchmarks"),
    *("tokenizer*.json", "special_tokens_map.json", "chat_template.jinja"),
)
_SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps")


def open_run_folder(run: RunConfig) -> Path | None:
    """Check the run folder and its remote copy, and write `config.yaml` into the folder.

    Returns:
        The checkpoint to resume from, or None to start from the beginning.

    Raises:
        ConfigError: if a folder holds something else, or this run with another config.
        CheckpointError: if the checkpoint asked for is not whole, or `training.remote_dir` cannot
            be reached.
    """
    training = run.training
    folder = Path(training.output_dir)
    remote = remote_run(training)
    if training.overwrite_output_dir:
        _clear(folder)
        if remote is not None:
            remote.clear()
    checkpoint = _find_checkpoint(folder, run, remote)
    if checkpoint is None and not training.overwrite_output_dir:
        _require_fresh(folder, training.resume_from_checkpoint)
        if remote is not None:
            _require_fresh_remote(remote)
    write_yaml(folder / CONFIG, redacted(run.to_dict()))
    return checkpoint


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str) -> None:
    """Write the tokenizer into the run folder, with the chat template that is trained.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # Its Rust part raises no kind of its own on a full disk.
        raise CheckpointError(
            f"cannot write the tokenizer to {folder}: {error}. Free some space or choose another "
            "place, and run again."
        ) from error


def remote_run(training: TrainingConfig) -> RemoteRun | None:
    """The run folder elsewhere, if the run has one.

    Raises:
        CheckpointError: if its server cannot be reached.
    """
    if training.remote_dir is None:
        return None
    return RemoteRun(training.remote_dir, training.remote_storage_options, training.remote_timeout)


def _find_checkpoint(folder: Path, run: RunConfig, remote: RemoteRun | None) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means, once it is sure that it fits."""
    resume = run.training.resume_from_checkpoint
    if resume == "never":
        return None
    if resume == "auto":
        return _find_newest(folder, run, remote)
    if is_remote(resume):
        resume = _copy_of(resume, run)
    checkpoint = resolve_checkpoint(folder, resume)
    assert checkpoint is not None  # Only "auto" may find nothing.
    changes = list(_changes(_config_at(checkpoint.parent), run))
    if changes:
        warnings.warn(
            f"Resuming {checkpoint} with another config: {'; '.join(changes)}.", stacklevel=3
        )
    _require_newest(folder, checkpoint, remote)
    return checkpoint


def _find_newest(folder: Path, run: RunConfig, remote: RemoteRun | None) -> Path | None:
    """The newest whole checkpoint, here or elsewhere; of this very run."""
    checkpoint = resolve_checkpoint(folder, "auto")
    if checkpoint is not None:
        _refuse_changes(_config_at(folder), run, str(folder), str(checkpoint))
    if remote is None:
        return checkpoint
    step = -1 if checkpoint is None else checkpoint_step(checkpoint)
    names = remote.checkpoints()
    if names:
        config = parse_yaml(remote.read(CONFIG) or b"{}", f"{remote.address}/{CONFIG}")
        _refuse_changes(config, run, remote.address, f"{remote.address}/{names[-1]}")
    if not names or checkpoint_step(names[-1]) <= step:
        return checkpoint
    if not list_checkpoints(folder):
        _require_fresh(folder, "auto")
    fetch_files(remote, folder)
    return fetch_newest(remote, folder, after=step) or checkpoint


def _copy_of(address: str, run: RunConfig) -> str:
    """A checkpoint that is named by its address, on this machine."""
    if checkpoint_step(address) < 0 and not address.endswith("/best"):
        raise ConfigError(
            f"training.resume_from_checkpoint={address!r} is not a checkpoint; name one: "
            f"{address.rstrip('/')}/checkpoint-N or {address.rstrip('/')}/best."
        )
    return str(local_copy(address, run.training.remote_storage_options))


def _refuse_changes(config: Mapping[str, Any], run: RunConfig, where: str, checkpoint: str) -> None:
    """`auto` goes on only with the same run."""
    changes = list(_changes(config, run))
    if changes:
        raise ConfigError(
            f"{where} holds a run with another config: {'; '.join(changes)}. Choose another "
            "training.output_dir (and training.remote_dir), set "
            "training.overwrite_output_dir=true to start afresh, or name the checkpoint to go on "
            f"with: training.resume_from_checkpoint={checkpoint}."
        )


def _require_newest(folder: Path, checkpoint: Path, remote: RemoteRun | None) -> None:
    """Two histories in one folder would make `auto` resume the wrong one."""
    others = list_checkpoints(folder)
    places = []
    if others and others[-1].resolve() != checkpoint.resolve():
        places.append(str(others[-1]))
    if remote is not None and remote.newest_step() > checkpoint_step(checkpoint):
        places.append(f"{remote.address}/checkpoint-{remote.newest_step()}")
    if places:
        raise ConfigError(
            f"there is {' and '.join(places)}, which is not the checkpoint to resume from "
            f"({checkpoint}); choose another training.output_dir (and training.remote_dir), or "
            "remove what comes after it."
        )


def _require_fresh(folder: Path, resume: str) -> None:
    """Nothing is there, or only what a run of ours writes before its first checkpoint."""
    if folder.is_file():
        raise ConfigError(f"training.output_dir={str(folder)!r} is a file; choose a folder.")
    if not folder.is_dir() or {path.name for path in folder.iterdir()} <= {LOCK}:
        return
    began = (folder / CONFIG).is_file() and not list_checkpoints(folder)
    if not (began and resume == "auto"):
        raise ConfigError(
            f"training.output_dir={str(folder)!r} is not empty and there is nothing to resume; "
            "choose another folder, or set training.overwrite_output_dir=true."
        )


def _require_fresh_remote(remote: RemoteRun) -> None:
    """Nothing is there that a new run would be mixed up with."""
    names = remote.checkpoints(whole=False)
    if names:
        raise ConfigError(
            f"training.remote_dir={remote.address!r} holds {names[-1]} and there is nothing to "
            "resume; choose another folder, or set training.overwrite_output_dir=true."
        )


def _clear(folder: Path) -> None:
    """Remove what an earlier run wrote; files of others stay."""
    for pattern in _WRITTEN:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _config_at(folder: Path) -> dict[str, Any]:
    """The config of the run in a folder; empty where there is none."""
    return read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def _changes(config: Mapping[str, Any], run: RunConfig) -> Iterator[str]:
    """What differs between the config of the run that is there and this one."""
    if not config:
        return
    free = tuple(settings_with(RunConfig, {"may_change": True}))
    before, now = (dict(flat(_compared(values))) for values in (config, run.to_dict()))
    for key in before.keys() | now.keys():
        may_change = key in free or key.startswith(tuple(f"{name}." for name in free))
        if before.get(key) != now.get(key) and not may_change:
            yield f"{key} was {before.get(key)!r}, is {now.get(key)!r}"


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config is compared: who asks (tokens, keys) and how a step is split are not."""
    values: dict[str, Any] = without_options(redacted(config))
    training, data = values.get("training", {}), values.get("data", {})
    if not data.get("packing", True) and data.get("group_by_length"):
        return values  # Its batches are drawn by their size.
    split = [training.pop(name, 1) for name in _SPLIT]
    if training.get("total_train_batch_size") is None:
        training[" x ".join(_SPLIT)] = split[0] * split[1]
    return values
