"""Folders that only this user may write, and files in them that are no links to elsewhere.

What lies at a name that others can compute (a cache folder, a lock, a note) may have been put there
by one of them. So a folder is made for its owner alone, one of another owner is refused, and files
are opened without following a link.
"""

import os
import stat
from pathlib import Path

from controlllm.common.errors import ConfigError

__all__ = ["own_folder", "read_note", "write_note"]

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NOTE_BYTES = 2**16


def own_folder(path: Path, option: str) -> Path:
    """Make a folder that this user alone may use, or check that an existing one is this user's.

    Args:
        path: the folder; those above it are made as well.
        option: what chooses it, for messages.

    Raises:
        ConfigError: it belongs to another user, or others may write to it.
        OSError: it cannot be made.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not hasattr(os, "geteuid"):
        return path  # Windows: folders in a user's profile are that user's.
    # A link counts as its owner's word: one of this user's may lead to another disk. What the
    # administrator made (in an image, say) could not be kept from this process anyway.
    for found in (path.lstat(), path.stat()):
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(
                f"{path} belongs to another user (id {found.st_uid}, this process runs as "
                f"{os.geteuid()}), who could have put anything there; choose another folder with "
                f"`{option}`, or make it yours with `chown`."
            )
    if path.stat().st_mode & _OTHERS:
        raise ConfigError(
            f"other users may write to {path}; run `chmod go-w {path}` if nobody did, or choose "
            f"another folder with `{option}`."
        )
    return path


def write_note(path: Path, text: str) -> None:
    """Write a small text file in place, for this user's eyes, unless its name is a link.

    Raises:
        OSError: it is a link, or cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NOFOLLOW
    with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def read_note(path: Path) -> str:
    """A small text file; empty where there is none, or only a link."""
    try:
        with open(os.open(path, os.O_RDONLY | _NOFOLLOW), encoding="utf-8", errors="replace") as f:
            return f.read(_NOTE_BYTES)
    except OSError:
        return ""
