"""One process does the work, the others wait for it: locks and failures on a shared disk."""

import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from controlllm.common.errors import ControlLLMError, DataError
from controlllm.common.storage.files import write_text
from controlllm.common.storage.private import read_note, write_note

__all__ = ["make_once"]

log = logging.getLogger(__name__)


def make_once(
    target: Path, is_whole: Callable[[], bool], make: Callable[[], None], timeout: float
) -> None:
    """Make `target`, unless another process has made it, or makes it now.

    Where another process fails while this one waits, this one fails with the same words instead of
    trying what cannot work.

    Args:
        target: file or folder to be made; beside it lie `.lock`, while it is made `.holder` (who
            makes it), and after a failure `.failed` (its words).
        is_whole: whether it is there, complete.
        make: makes it, atomically.
        timeout: seconds to wait for another process.

    Raises:
        DataError: the wait took longer than `timeout`, the other process failed, or locks cannot be
            used at this place.
    """
    if is_whole():
        return
    failure = _beside(target, "failed")
    known_failure = read_note(failure)
    with _locked(target, timeout):
        if is_whole():
            return
        if (found := read_note(failure)) not in ("", known_failure):
            raise DataError(found.partition("\n")[2])
        try:
            make()
        except ControlLLMError as error:
            # On a full disk the others are not told; then each of them finds out by itself.
            with suppress(ControlLLMError):
                write_text(failure, f"{uuid.uuid4()}\n{error}")
            raise
        with suppress(OSError):
            failure.unlink(missing_ok=True)


@contextmanager
def _locked(target: Path, timeout: float) -> Iterator[None]:
    """Hold the lock beside `target`, with a note of who does."""
    lock_file, holder = _beside(target, "lock"), _beside(target, "holder")
    lock = FileLock(lock_file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _acquire(
            lock, lambda: f"{read_note(holder) or 'another process'}, which makes {target}", timeout
        )
    except Timeout:
        raise DataError(
            f"waited {timeout:g} s for another process ({read_note(holder) or 'unknown'}) that "
            f"prepares {target}. Give it more time (`data.cache_timeout`), or, if no process "
            f"works on it, remove {lock_file}."
        ) from None
    except (OSError, NotImplementedError) as error:
        raise DataError(
            f"{target} cannot be prepared: {lock_file} cannot be locked ({error}); choose another "
            "`data.cache_dir`, on a disk that may be written and knows locks."
        ) from error
    try:
        # A note for people only: a full disk must not stop what might still fit.
        with suppress(OSError):
            write_note(holder, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, holder: Callable[[], str], timeout: float) -> None:
    """Take a lock; where another process has it, say so before the wait, which may be long."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Waiting up to %g s for %s", timeout, holder())
        lock.acquire(timeout=timeout)


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f"{target.name}.{ending}")
