"""Bringing checkpoints, and what lies beside them, from elsewhere to the local disk.

A checkpoint comes under a temporary name and takes its own once every file fits the manifest.
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from controlllm.checkpoint.mirror.remote import FOLDERS, RemoteRun
from controlllm.checkpoint.training.checkpoints import BEST, best_named, checkpoint_step
from controlllm.checkpoint.training.manifest import MANIFEST, parse_manifest, verify_manifest
from controlllm.common.errors import CheckpointError
from controlllm.common.registry import few
from controlllm.common.storage.files import atomic_file, atomic_folder, read_json
from controlllm.common.text.names import holds_data

__all__ = [
    "BrokenError",
    "fetch_checkpoint",
    "fetch_files",
    "fetch_newest",
    "first_whole",
    "has_whole",
    "read_manifest",
]

log = logging.getLogger(__name__)

_PIECE_BYTES = 4 * 2**20


class BrokenError(CheckpointError):
    """A checkpoint elsewhere is not whole; another one may be."""


def fetch_newest(remote: RemoteRun, folder: Path, after: int = -1) -> Path | None:
    """Bring the newest whole checkpoint into a local run folder, and the best one too.

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
    found = first_whole(names, lambda name: fetch_checkpoint(remote, name, folder))
    if found is not None:
        _fetch_best(remote, folder)
    return found


def first_whole(names: Sequence[str], fetch: Callable[[str], Path]) -> Path | None:
    """The newest checkpoint that can be fetched; warns of each broken one that is passed over."""
    for name in reversed(names):
        try:
            return fetch(name)
        except BrokenError as error:
            warnings.warn(f"Passing over a checkpoint: {error}", stacklevel=2)
    return None


def fetch_checkpoint(remote: RemoteRun, name: str, folder: Path) -> Path:
    """Bring `checkpoint-N` into a local folder, and verify it; a good copy there is kept.

    Raises:
        BrokenError: if it is not whole.
        CheckpointError: if the server, or the local disk, fails.
    """
    target = folder / name
    manifest = read_manifest(remote, name)
    if has_whole(target, manifest):
        return target
    files = _expected_files(remote, name, manifest)
    with atomic_folder(target, overwrite=True) as temporary:
        for file in files:
            _receive(remote, f"{name}/{file}", temporary / file)
        (temporary / MANIFEST).write_bytes(manifest)
        try:
            verify_manifest(temporary)
        except CheckpointError as error:
            raise BrokenError(f"{remote.address}/{name} is damaged: {error}") from error
    log.info("Fetched %s/%s", remote.address, name)
    return target


def fetch_files(remote: RemoteRun, folder: Path, inner: Iterable[str] = FOLDERS) -> None:
    """Bring the files that lie directly in the remote folder.

    The files of the folders `inner` come as well: by default the rehearsal texts of a run.

    Raises:
        CheckpointError: if the server, or the local disk, fails on the way.
    """
    names = list(remote.sizes())
    for part in inner:
        names += [f"{part}/{name}" for name in remote.sizes(part)]
    for name in _data_among(names, remote.address):
        with atomic_file(folder / name) as temporary:
            _receive(remote, name, temporary)


def read_manifest(remote: RemoteRun, name: str) -> bytes:
    """The manifest of a remote checkpoint, as bytes.

    Raises:
        BrokenError: if it has none.
        CheckpointError: if the server cannot say.
    """
    content = remote.read(f"{name}/{MANIFEST}")
    if content is None:
        raise BrokenError(
            f"{remote.address}/{name} has no {MANIFEST}: it was not copied completely."
        )
    return content


def _expected_files(remote: RemoteRun, name: str, manifest: bytes) -> list[str]:
    """The checkpoint's files, once a mere listing shows that all are there in their sizes."""
    where = f"{remote.address}/{name}"
    try:
        files = parse_manifest(manifest, f"{where}/{MANIFEST}")["files"]
    except CheckpointError as error:
        raise BrokenError(str(error)) from error
    found = remote.sizes(name)
    for file, entry in files.items():
        if not holds_data(file):
            raise BrokenError(
                f"{where}/{file} is not a data file of a checkpoint, and is not fetched."
            )
        if found.get(file) != entry["bytes"]:
            raise BrokenError(
                f"{where}/{file} is missing, truncated or changed: {found.get(file)} bytes "
                f"instead of {entry['bytes']}."
            )
    return list(files)


def _data_among(names: list[str], where: str) -> list[str]:
    """Those that hold data; the others are named once, and stay where they are."""
    left = [name for name in names if not holds_data(name)]
    if left:
        text = "Not fetched from %s, because they are no data files of a model or a run: %s"
        log.info(text, where, few(left, 5))
    return [name for name in names if holds_data(name)]


def _receive(remote: RemoteRun, relative: str, target: Path) -> None:
    with remote.open(relative) as source, target.open("wb") as file:
        data = b"..."
        while data:
            with remote.asking():
                data = source.read(_PIECE_BYTES)
            file.write(data)


def _fetch_best(remote: RemoteRun, folder: Path) -> None:
    """Bring the checkpoint that `best.json` names, which the run must go on keeping."""
    if not (folder / BEST).is_file():
        return
    name = best_named(read_json(folder / BEST), folder / BEST)
    try:
        fetch_checkpoint(remote, name, folder)
    except BrokenError as error:
        warnings.warn(f"The best checkpoint is lost: {error}", stacklevel=3)
        (folder / BEST).unlink()


def has_whole(checkpoint: Path, manifest: bytes) -> bool:
    """Whether the checkpoint with this manifest is there already, whole."""
    path = checkpoint / MANIFEST
    if not path.is_file() or path.read_bytes() != manifest:
        return False
    try:
        verify_manifest(checkpoint)
    except CheckpointError:
        return False
    return True
