"""Copying checkpoints to a run folder elsewhere.

A checkpoint is saved on the local disk first, so that whatever happens to the server, that one
stays good. Its manifest is copied last, once all other files have arrived.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from controlllm.checkpoint.mirror.remote import FOLDERS, RemoteRun
from controlllm.checkpoint.training.checkpoints import best_checkpoint, checkpoint_step
from controlllm.checkpoint.training.manifest import MANIFEST
from controlllm.common.errors import CheckpointError

__all__ = ["Uploader"]

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0


class Uploader:
    """Copies a local run folder to a remote one, as it grows."""

    def __init__(self, remote: RemoteRun, save_total_limit: int | None = None) -> None:
        self.remote = remote
        self.limit = save_total_limit
        self._sent: dict[str, tuple[int, int]] = {}

    def send(self, checkpoint: Path) -> None:
        """Copy a checkpoint and what lies beside it, then remove the oldest beyond the limit.

        What is there already, whole, is not copied again. The best checkpoint (of the local
        `best.json`) and this one are never removed.

        Raises:
            CheckpointError: if it could not be copied. It is whole on the local disk, and no half
                of it will be taken for a checkpoint.
        """
        with self._copying(f"{checkpoint} is saved, but"):
            if not self._is_there(checkpoint):
                self.remote.remove(checkpoint.name)
                for file in sorted(checkpoint.iterdir()):
                    if file.name != MANIFEST:
                        self._send(file, f"{checkpoint.name}/{file.name}")
                self._replace(checkpoint / MANIFEST, f"{checkpoint.name}/{MANIFEST}")
                log.info("Copied %s to %s", checkpoint, self.remote.address)
        self.send_files(checkpoint.parent)
        with self._copying(f"{checkpoint} is saved and copied, but what is older"):
            self._prune(checkpoint)

    def send_files(self, folder: Path) -> None:
        """Copy the files that lie directly in a run folder, and its rehearsal texts.

        They may grow or change meanwhile: each is copied as it is at one moment.

        Raises:
            CheckpointError: if they could not be copied.
        """
        with self._copying(f"the files of {folder}"), TemporaryDirectory() as still:
            inner = (path for name in FOLDERS for path in sorted((folder / name).glob("*")))
            for file in (*sorted(folder.iterdir()), *inner):
                if not file.is_file() or file.name.startswith("."):  # a temporary name
                    continue
                stat = file.stat()
                stamp = (stat.st_size, stat.st_mtime_ns)
                name = file.relative_to(folder).as_posix()
                if self._sent.get(name) != stamp:
                    self._replace(Path(shutil.copyfile(file, Path(still, file.name))), name)
                    self._sent[name] = stamp

    @contextmanager
    def _copying(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{what} could not be copied to {self.remote.address}: {error}. Once the server "
                "takes it, run the same command again: it goes on from the newest local checkpoint "
                "and copies that one first. Or go on without a copy: training.remote_dir=null."
            ) from error

    def _is_there(self, checkpoint: Path) -> bool:
        """Whether this very checkpoint is there, with every file of its size."""
        filesystem, path = self.remote.filesystem, self.remote.at(f"{checkpoint.name}/{MANIFEST}")
        filesystem.invalidate_cache()
        manifest = (checkpoint / MANIFEST).read_bytes()
        if not filesystem.exists(path) or filesystem.cat_file(path) != manifest:
            return False
        sizes = self.remote.sizes(checkpoint.name)
        return all(sizes.get(file.name) == file.stat().st_size for file in checkpoint.iterdir())

    def _send(self, local: Path, relative: str) -> None:
        """Copy one file, anew where the connection breaks."""
        filesystem, place = self.remote.filesystem, self.remote.at(relative)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                filesystem.put_file(str(local), place)
                filesystem.invalidate_cache()
                size, arrived = local.stat().st_size, filesystem.info(place)["size"]
                if arrived == size:
                    return
                raise OSError(f"{place} has {arrived} bytes instead of {size}")
            except (PermissionError, TimeoutError):
                raise  # Asking again would not help, or would take as long again.
            except OSError as error:
                if attempt == _ATTEMPTS:
                    raise
                log.warning("Copying %s failed (%s); trying again", local, error)
                time.sleep(_PAUSE_SECONDS)

    def _replace(self, local: Path, relative: str) -> None:
        """Copy a file that may be there already: at any moment the old or the new one is read."""
        folder, slash, name = relative.rpartition("/")
        temporary = f"{folder}{slash}.{name}.copying"
        self._send(local, temporary)
        self.remote.rename(temporary, relative)

    def _prune(self, newest: Path) -> None:
        """Remove the oldest beyond the limit, and what an interrupted copy left behind."""
        whole = self.remote.checkpoints()
        for name in self.remote.checkpoints(whole=False):
            if name not in whole and checkpoint_step(name) < checkpoint_step(newest):
                self.remote.remove(name)
        if self.limit is None:
            return
        best = best_checkpoint(newest.parent)
        kept = {newest.name, best.name if best else None}
        removable = [name for name in whole if name not in kept]
        for name in removable[: max(len(whole) - max(self.limit, 1), 0)]:
            self.remote.remove(name)
