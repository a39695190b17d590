"""One writer in a folder at a time, for as long as it lives."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controlllm.common.errors import ConfigError
from controlllm.common.storage.disk import make_folder
from controlllm.common.storage.held import LOCK, Held, TakenError, hold

__all__ = ["occupied"]


@contextmanager
def occupied(folder: Path, setting: str) -> Iterator[None]:
    """Keep other writers out of a folder, which is made if need be; readers are not kept out.

    Args:
        folder: the folder.
        setting: what the user calls it.

    Raises:
        ConfigError: another process is at work there (which one is said), or the folder is a file
            or cannot be written.
    """
    held = _enter(folder, f"{setting}={str(folder)!r}")
    try:
        yield
    finally:
        held.release(remove=True)


def _enter(folder: Path, named: str) -> Held:
    if folder.is_file():
        raise ConfigError(f"{named} is a file; choose a folder.")
    try:
        make_folder(folder)
        held = _hold(folder)
    except TakenError as error:
        raise ConfigError(
            f"{named} is in use by {error.holder or 'another process'}; wait until it has ended, "
            "end it, or choose another folder."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{named} cannot be written: {error.strerror or error}. Choose another folder, or make "
            "room there."
        ) from error
    if not held.is_locked:
        warnings.warn(
            f"{named} lies on a disk without locks: nothing keeps a second run out of it.",
            stacklevel=4,
        )
    elif held.before is not None and not held.before.is_on_this_machine:
        warnings.warn(
            f"{named} was last held by {held.before}, which was ended from outside. Some shared "
            "disks do not share locks: make sure that it is gone.",
            stacklevel=4,
        )
    return held


def _hold(folder: Path) -> Held:
    held = hold(folder / LOCK)
    try:
        held.note()
    except OSError:
        held.release(remove=True)
        raise
    return held
