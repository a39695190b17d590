"""Copies on this machine of what is loaded from elsewhere: one folder per address and version.

    ~/.cache/controlllm/models/<address>/<version>/seven/    a run folder as it was, and of its
        config.yaml, tokenizer.json, ..., checkpoint-40/     checkpoints the one that was asked for

A version is told by the listing (names, sizes, times or ETags) and a checkpoint's manifest. It is
filled by one process while others wait, takes its name once it is whole, and is neither changed nor
removed afterwards: who reads it is not disturbed by who loads a newer one.
"""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from controlllm.checkpoint.mirror.fetch import (
    fetch_checkpoint,
    fetch_files,
    first_whole,
    has_whole,
    read_manifest,
)
from controlllm.checkpoint.mirror.remote import RemoteRun
from controlllm.checkpoint.training.manifest import MANIFEST
from controlllm.checkpoint.training.saved import KINDS
from controlllm.common.errors import CheckpointError
from controlllm.common.storage.files import atomic_folder
from controlllm.common.storage.lock import alone, cache_root, own_folder
from controlllm.common.text.names import is_checkpoint, is_plain

__all__ = ["local_copy"]

log = logging.getLogger(__name__)


def local_copy(address: str, storage_options: dict[str, Any] | None = None) -> Path:
    """Copy a remote model or checkpoint into the cache of this machine.

    Args:
        address: a run folder (its best checkpoint, else its newest whole one), `run/best`,
            `run/checkpoint-N`, or the folder of a model.
        storage_options: for the client (docs/hdfs.md).

    Returns:
        The local folder, below `$CONTROLLLM_CACHE` (`~/.cache/controlllm`). What is there already,
        whole and the same, is not fetched again.

    Raises:
        CheckpointError: if nothing that can be loaded lies there, or the server fails.
        ConfigError: if the cache belongs to another user.
    """
    parent, _, name = address.rstrip("/").rpartition("/")
    if is_checkpoint(name):
        return _copy_of_checkpoint(RemoteRun(parent, storage_options), name)
    if name == "best":
        above = RemoteRun(parent, storage_options)
        if best := above.best():
            return _copy_of_checkpoint(above, best)
    run = RemoteRun(address, storage_options)
    if not run.checkpoints():
        return _copy_of_model(run)
    if best := run.best():
        return _copy_of_checkpoint(run, best)
    newest = first_whole(run.checkpoints(whole=False), partial(_copy_of_checkpoint, run))
    if newest is None:
        raise CheckpointError(f"{run.address} holds no whole checkpoint.")
    return newest


def _copy_of_checkpoint(run: RemoteRun, name: str) -> Path:
    """One checkpoint, with the tokenizer and the like beside it."""
    manifest = read_manifest(run, name)
    target = _place(run, name, hashlib.sha256(manifest).hexdigest())

    def fill(folder: Path) -> None:
        fetch_files(run, folder, inner=())
        _link_known(target, name, manifest, folder)
        fetch_checkpoint(run, name, folder)

    _fill_once(target, lambda: has_whole(target / name, manifest), fill)
    return target / name


def _copy_of_model(remote: RemoteRun) -> Path:
    files = remote.sizes()
    known = [kind.config for kind in KINDS.values()]
    if not any(name in files for name in known):
        raise CheckpointError(
            f"{remote.address} holds no model: no {', no '.join(known)} and no whole "
            "checkpoint-N folder."
        )
    target = _place(remote)
    _fill_once(target, target.is_dir, lambda folder: fetch_files(remote, folder, inner=()))
    return target


def _place(remote: RemoteRun, *more: str) -> Path:
    """Where the present version of a folder elsewhere is copied to; its own name comes last."""
    root = Path(cache_root()).expanduser()
    try:
        models = own_folder(root / "models", "CONTROLLLM_CACHE")
    except OSError as error:
        raise CheckpointError(
            f"{root / 'models'} cannot be made: {error}; set CONTROLLLM_CACHE to a folder that you "
            "may write to."
        ) from error
    stamps = remote.stamps()
    told = json.dumps([sorted(stamps.items()), *more])
    # Where the server tells no times, nobody can know whether it is what was copied before.
    is_known = None not in stamps.values()
    version = hashlib.sha256(told.encode()).hexdigest()[:16] if is_known else uuid.uuid4().hex
    address = hashlib.sha256(remote.address.encode()).hexdigest()[:16]
    name = remote.address.rpartition("/")[2]
    return models / address / version / (name if is_plain(name) else "model")


def _fill_once(target: Path, is_whole: Callable[[], bool], fill: Callable[[Path], None]) -> None:
    """Let one process make the folder, whole at once, while the others wait for it."""
    if is_whole():
        return
    with alone(target, CheckpointError, "CONTROLLLM_CACHE"):
        if not is_whole():
            with atomic_folder(target, overwrite=True) as temporary:
                fill(temporary)


def _link_known(target: Path, name: str, manifest: bytes, folder: Path) -> None:
    """Take a checkpoint from an earlier version of the run, where only what lies beside changed.

    A help only: whatever is wrong with it is found by `fetch_checkpoint`, which fetches it then.
    """
    for known in target.parents[1].glob(f"*/{target.name}/{name}"):
        try:
            if (known / MANIFEST).read_bytes() == manifest:
                shutil.copytree(known, folder / name, copy_function=os.link)
                return
        except OSError as error:
            log.info("Not taken from %s: %s", known, error)
            shutil.rmtree(folder / name, ignore_errors=True)
