"""A run folder elsewhere (HDFS, S3, ...), laid out as the one on disk is.

    webhdfs://namenode:9870/runs/seven/
      config.yaml, tokenizer.json, metrics.jsonl, best.json, rehearsal/...
      checkpoint-40/       its manifest.json is written last: without one, it is no checkpoint

`upload` brings checkpoints there, `fetch` brings them back.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from controlllm.checkpoint.training.checkpoints import BEST, best_named, checkpoint_step
from controlllm.checkpoint.training.manifest import MANIFEST
from controlllm.common.errors import CheckpointError, DataError
from controlllm.common.storage.remote import STAMPS, open_filesystem, shown
from controlllm.common.text.names import is_checkpoint, is_plain
from controlllm.common.text.secrets import hidden

__all__ = ["FOLDERS", "RemoteRun"]

FOLDERS = ("rehearsal",)
"""What belongs to a run, besides checkpoints and the files that lie directly in its folder."""


class RemoteRun:
    """A run folder, or any folder, on another file system.

    Args:
        address: where it is, or is to be: `webhdfs://...`, `hdfs://...`, `s3://...`, or a path.
        storage_options: for the client (docs/hdfs.md).
        timeout: the longest wait in seconds.

    Raises:
        CheckpointError: if its server cannot be reached; each method, too, if it cannot answer.
    """

    def __init__(
        self, address: str, storage_options: dict[str, Any] | None = None, timeout: float = 60.0
    ) -> None:
        self.address = shown(address).rstrip("/")
        try:
            self.filesystem, path = open_filesystem(address, storage_options, timeout)
        except DataError as error:
            raise CheckpointError(str(error)) from error
        self._path = path.rstrip("/")

    def at(self, relative: str = "") -> str:
        """The path of something in this folder, on its file system."""
        return f"{self._path}/{relative}" if relative else self._path or "/"

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Raise errors of the server within the block as `CheckpointError`."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.address} cannot be used: {hidden(error)}. Try again once its server "
                "answers; no checkpoint was harmed."
            ) from error

    def checkpoints(self, whole: bool = True) -> list[str]:
        """The names `checkpoint-N` by rising step.

        With `whole`, those that were not copied to their end are left out.
        """
        with self.asking():
            entries = self._list("")
            names = [n for n, entry in entries.items() if entry["type"] == "directory"]
            names = sorted(filter(is_checkpoint, names), key=checkpoint_step)
            if not whole:
                return names
            return [n for n in names if self.filesystem.exists(self.at(f"{n}/{MANIFEST}"))]

    def newest_step(self) -> int:
        """The step of the newest checkpoint that was copied to its end; -1 if there is none."""
        return max(map(checkpoint_step, self.checkpoints()), default=-1)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The files directly in a folder, with their bytes; hidden and odd names are left out."""
        return {name: entry["size"] for name, entry in self._files(folder).items()}

    def stamps(self) -> dict[str, str | None]:
        """The files directly in this folder, each with what changes when the file does.

        None where the server tells neither a time nor an ETag.
        """
        stamps: dict[str, str | None] = {}
        for name, entry in self._files("").items():
            known = [f"{key}={entry[key]}" for key in STAMPS if entry.get(key) is not None]
            stamps[name] = f"{entry['size']} {' '.join(known)}" if known else None
        return stamps

    def best(self) -> str | None:
        """The name of the best checkpoint, or None where none is marked.

        Raises:
            CheckpointError: what marks it is damaged, or the server cannot say.
        """
        content, where = self.read(BEST), f"{self.address}/{BEST}"
        if content is None:
            return None
        try:
            return best_named(json.loads(content), where)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{where} is damaged: {error}; remove it.") from error

    def read(self, relative: str) -> bytes | None:
        """The content of a small file, or None where it is not there."""
        with self.asking():
            for place in (self.at(relative), self.at(_old(relative))):
                try:
                    return bytes(self.filesystem.cat_file(place))
                except FileNotFoundError:
                    continue
            return None

    def open(self, relative: str) -> Any:
        """A file, to be read."""
        with self.asking():
            try:
                return self.filesystem.open(self.at(relative), "rb")
            except FileNotFoundError:
                return self.filesystem.open(self.at(_old(relative)), "rb")

    def rename(self, temporary: str, relative: str) -> None:
        """Give a file its name, in place of an older one (OSError).

        At any moment one of both is found by `read`, `open` and `sizes`, whatever is killed. Where
        the server cannot rename over a file (HttpFS, some SFTP), the older one steps aside first.
        """
        move, place, old = self.filesystem.mv, self.at(relative), self.at(_old(relative))
        try:
            move(self.at(temporary), place, overwrite=True)
            return
        except (PermissionError, TimeoutError):
            raise
        except OSError:
            if not self.filesystem.exists(place):
                raise
        self.remove(_old(relative))
        move(place, old)
        move(self.at(temporary), place)
        self.remove(_old(relative))

    def remove(self, relative: str) -> None:
        """Remove a file or a folder, if it is there (OSError)."""
        if self.filesystem.exists(self.at(relative)):
            self.filesystem.rm(self.at(relative), recursive=True)

    def clear(self) -> None:
        """Remove all checkpoints and `best.json`: a run starts afresh."""
        names = self.checkpoints(whole=False)
        with self.asking():
            for name in [*names, BEST, _old(BEST)]:
                self.remove(name)

    def _files(self, folder: str) -> dict[str, dict[str, Any]]:
        """Files by their plain names; one that stepped aside for good stands under its own."""
        with self.asking():
            entries = self._list(folder)
        files = {name: entry for name, entry in entries.items() if entry["type"] == "file"}
        plain = {name: entry for name, entry in files.items() if is_plain(name)}
        aside = {name[1:-4]: entry for name, entry in files.items() if _ASIDE.fullmatch(name)}
        return {name: entry for name, entry in aside.items() if is_plain(name)} | plain

    def _list(self, folder: str) -> dict[str, dict[str, Any]]:
        """What lies directly in a folder, by name; nothing if the folder is not there."""
        self.filesystem.invalidate_cache()
        try:
            entries = self.filesystem.ls(self.at(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {str(e["name"]).rstrip("/").rpartition("/")[2]: e for e in entries}


_ASIDE = re.compile(r"\..+\.old")


def _old(relative: str) -> str:
    """Where an older file is while a new one takes its name."""
    folder, slash, name = relative.rpartition("/")
    return f"{folder}{slash}.{name}.old"
