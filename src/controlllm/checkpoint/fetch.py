"""Bringing checkpoints and models from elsewhere to the local disk.

A checkpoint comes under a temporary name and takes its own once every file fits the manifest.
"""

import hashlib
import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from controlllm.checkpoint.kinds import KINDS
from controlllm.checkpoint.manifest import MANIFEST, parse_manifest, verify_manifest
from controlllm.checkpoint.names import holds_data, is_plain
from controlllm.checkpoint.remote import FOLDERS, RemoteRun
from controlllm.checkpoint.state import BEST, best_named, checkpoint_step
from controlllm.common.errors import CheckpointError
from controlllm.common.files import atomic_file, atomic_folder, read_json

__all__ = ["fetch_checkpoint", "fetch_files", "fetch_newest", "local_copy"]

log = logging.getLogger(__name__)

_PIECE_BYTES = 4 * 2**20


class _Broken(CheckpointError):
    """A remote checkpoint is not whole; another one may be."""


def fetch_newest(remote: RemoteRun, folder: Path, after: int = -1) -> Path | None:
    """Bring the newest whole checkpoint into a local run folder, and the best one too.

    Warns of each broken one that is passed over.

    Args:
        remote: the run elsewhere.
        folder: the local run folder; its `best.json`, if any, is already that of the run.
        after: look only at checkpoints of later steps.

    Returns:
        The checkpoint's local folder, or None if there is no whole one.

    Raises:
        CheckpointError: if the server, or the local disk, fails on the way.
    """
    names = [n for n in remote.checkpoints(whole=False) if checkpoint_step(n) > after]
    for name in reversed(names):
        try:
            found = fetch_checkpoint(remote, name, folder)
        except _Broken as error:
            warnings.warn(f"Passing over a checkpoint: {error}", stacklevel=2)
            continue
        _fetch_best(remote, folder)
        return found
    return None


def fetch_checkpoint(remote: RemoteRun, name: str, folder: Path) -> Path:
    """Bring `checkpoint-N` into a local folder, and verify it; a good copy there is kept.

    Raises:
        CheckpointError: if it is not whole, or the server, or the local disk, fails.
    """
    target = folder / name
    manifest = _read_manifest(remote, name)
    if _has(target, manifest):
        return target
    files = _expected_files(remote, name, manifest)
    with atomic_folder(target, overwrite=True) as temporary:
        for file in files:
            _receive(remote, f"{name}/{file}", temporary / file)
        (temporary / MANIFEST).write_bytes(manifest)
        try:
            verify_manifest(temporary)
        except CheckpointError as error:
            raise _Broken(f"{remote.address}/{name} is damaged: {error}") from error
    log.info("Fetched %s/%s", remote.address, name)
    return target


def fetch_files(remote: RemoteRun, folder: Path) -> None:
    """Bring the files that lie directly in the remote run folder, and its rehearsal texts.

    Raises:
        CheckpointError: if the server, or the local disk, fails on the way.
    """
    names = list(remote.sizes())
    for inner in FOLDERS:
        names += [f"{inner}/{name}" for name in remote.sizes(inner)]
    for name in _data_among(names, remote.address):
        with atomic_file(folder / name) as temporary:
            _receive(remote, name, temporary)


def local_copy(address: str, storage_options: dict[str, Any] | None = None) -> Path:
    """Bring what is to be loaded from elsewhere into the cache of this machine.

    Args:
        address: a run folder (its best checkpoint, else its newest whole one), `run/best`,
            `run/checkpoint-N`, or the folder of a model.
        storage_options: for the client (docs/hdfs.md).

    Returns:
        The local folder, below `$CONTROLLLM_CACHE` (`~/.cache/controlllm`). A checkpoint that is
        there already, whole and the same, is not fetched again.

    Raises:
        CheckpointError: if nothing that can be loaded lies there, or the server fails.
    """
    parent, _, name = address.rstrip("/").rpartition("/")
    if checkpoint_step(name) >= 0:
        return _copy_of_run(RemoteRun(parent, storage_options), name)
    if name == "best":
        run = RemoteRun(parent, storage_options)
        best = run.best()
        if best is not None:
            return _copy_of_run(run, best)
    folder = RemoteRun(address, storage_options)
    if folder.checkpoints():
        return _copy_of_run(folder, folder.best())
    return _copy_of_model(folder)


def _copy_of_run(run: RemoteRun, name: str | None) -> Path:
    """One checkpoint, with the tokenizer and the like beside it; the newest whole one for None."""
    folder = _cache_folder(run)
    for path in folder.glob("*"):
        if path.is_file():
            path.unlink()  # Of an earlier visit: the run may have lost it since.
    fetch_files(run, folder)
    if name is not None:
        return fetch_checkpoint(run, name, folder)
    newest = fetch_newest(run, folder)
    if newest is None:
        raise CheckpointError(f"{run.address} holds no whole checkpoint.")
    return newest


def _copy_of_model(remote: RemoteRun) -> Path:
    files = _data_among(remote.sizes(), remote.address)
    known = [kind.config for kind in KINDS.values()]
    if not any(name in files for name in known):
        raise CheckpointError(
            f"{remote.address} holds no model: no {', no '.join(known)} and no whole "
            "checkpoint-N folder."
        )
    target = _cache_folder(remote)
    with atomic_folder(target, overwrite=True) as temporary:
        for file in files:
            _receive(remote, file, temporary / file)
    return target


def _cache_folder(remote: RemoteRun) -> Path:
    """One folder per address; its last part is the remote folder's name."""
    root = Path(os.environ.get("CONTROLLLM_CACHE") or "~/.cache/controlllm").expanduser()
    digest = hashlib.sha256(remote.address.encode()).hexdigest()[:16]
    name = remote.address.rpartition("/")[2]
    return root / "models" / digest / (name if is_plain(name) else "model")


def _read_manifest(remote: RemoteRun, name: str) -> bytes:
    content = remote.read(f"{name}/{MANIFEST}")
    if content is None:
        raise _Broken(f"{remote.address}/{name} has no {MANIFEST}: it was not copied to its end.")
    return content


def _expected_files(remote: RemoteRun, name: str, manifest: bytes) -> list[str]:
    """The checkpoint's files, once a mere listing shows that all are there in their sizes."""
    where = f"{remote.address}/{name}"
    try:
        files = parse_manifest(manifest, f"{where}/{MANIFEST}")["files"]
    except CheckpointError as error:
        raise _Broken(str(error)) from error
    found = remote.sizes(name)
    for file, entry in files.items():
        if not holds_data(file):
            raise _Broken(f"{where}/{file} is no data of a checkpoint, and is not fetched.")
        if found.get(file) != entry["bytes"]:
            raise _Broken(
                f"{where}/{file} is missing, truncated or changed: {found.get(file)} bytes "
                f"instead of {entry['bytes']}."
            )
    return list(files)


def _data_among(names: Iterable[str], where: str) -> list[str]:
    """Those that hold data; the others are named once, and stay where they are."""
    names = list(names)
    left = [name for name in names if not holds_data(name)]
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        log.info("Left at %s, as no data of a model or a run: %s%s", where, left[:5], more)
    return [name for name in names if holds_data(name)]


def _receive(remote: RemoteRun, relative: str, target: Path) -> None:
    with remote.asking():
        source = remote.filesystem.open(remote.at(relative), "rb")
    with source, target.open("wb") as file:
        while data := _piece(remote, source):
            file.write(data)


def _piece(remote: RemoteRun, source: Any) -> bytes:
    with remote.asking():
        return bytes(source.read(_PIECE_BYTES))


def _fetch_best(remote: RemoteRun, folder: Path) -> None:
    """Bring the checkpoint that `best.json` names, which the run must go on keeping."""
    if not (folder / BEST).is_file():
        return
    name = best_named(read_json(folder / BEST), folder / BEST)
    try:
        fetch_checkpoint(remote, name, folder)
    except _Broken as error:
        warnings.warn(f"The best checkpoint is lost: {error}", stacklevel=3)
        (folder / BEST).unlink()


def _has(checkpoint: Path, manifest: bytes) -> bool:
    """Whether the checkpoint with this manifest is there already, whole."""
    path = checkpoint / MANIFEST
    if not path.is_file() or path.read_bytes() != manifest:
        return False
    try:
        verify_manifest(checkpoint)
    except CheckpointError:
        return False
    return True
