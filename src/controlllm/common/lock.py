"""One process does the work, the others wait for it: locks and failures on a shared disk."""

import os
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from controlllm.common.errors import ControlLLMError, DataError
from controlllm.common.files import write_text

__all__ = ["make_once"]


def make_once(
    target: Path, is_whole: Callable[[], bool], make: Callable[[], None], timeout: float
) -> None:
    """Make `target`, unless another process has made it, or makes it now.

    Where another process fails while this one waits, this one fails with the same words instead of
    trying what cannot work.

    Args:
        target: file or folder to be made; the lock lies beside it.
        is_whole: whether it is there, complete.
        make: makes it, atomically.
        timeout: seconds to wait for another process.

    Raises:
        DataError: the wait took longer than `timeout`, or the other process failed.
    """
    if is_whole():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    lock_file, failure = (target.with_name(f"{target.name}.{end}") for end in ("lock", "failed"))
    known_failure = _read(failure)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise DataError(
            f"waited {timeout:g} s for another process ({_read(lock_file) or 'unknown'}) that "
            f"prepares {target}. Give it more time (`data.cache_timeout`), or, if no process "
            f"works on it, remove {lock_file}."
        ) from None
    try:
        lock_file.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        if is_whole():
            return
        if (found := _read(failure)) != known_failure:
            raise DataError(found.partition("\n")[2])
        try:
            make()
        except ControlLLMError as error:
            write_text(failure, f"{uuid.uuid4()}\n{error}")
            raise
        failure.unlink(missing_ok=True)
    finally:
        lock.release()


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
