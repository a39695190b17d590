"""Calls that may hang: each runs in a thread of its own, with a deadline.

A thread that is late is left behind (it ends when its client gives up, or with the process), and
the caller gets a `TimeoutError`.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from controlllm.common.text.secrets import hidden

__all__ = ["Deadline"]

T = TypeVar("T")


class Deadline:
    """Runs calls that must show progress at least every `seconds` seconds."""

    def __init__(self, server: str, seconds: float) -> None:
        self.server = server
        self.seconds = seconds

    def run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The call's result.

        Raises:
            TimeoutError: if it has not ended in time.
            OSError: for whatever its client raises.
        """
        return self.run_long(lambda progress: call(*args, **kwargs))

    def run_long(self, call: Callable[[Callable[[], None]], T]) -> T:
        """The result of a call that may take long as a whole.

        Args:
            call: is given a function to call whenever something has arrived or was taken.

        Raises:
            TimeoutError: if it has neither ended nor shown progress in time.
            OSError: for whatever its client raises.
        """
        answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        last = [time.monotonic()]

        def progress() -> None:
            last[0] = time.monotonic()

        def work() -> None:
            try:
                answers.put((call(progress), None))
            except BaseException as error:
                answers.put((None, error))

        threading.Thread(target=work, daemon=True, name=f"waits for {self.server}").start()
        while True:
            left = last[0] + self.seconds - time.monotonic()
            try:
                result, error = answers.get(timeout=max(left, 0.001))
                break
            except queue.Empty:
                if time.monotonic() - last[0] >= self.seconds:
                    raise TimeoutError(
                        f"{self.server} gave no answer within {self.seconds:g} s; is it up and "
                        "reachable from here? A slow server needs a longer time-out"
                    ) from None
        if error is not None:
            raise _as_os_error(error, self.server) from error
        return cast(T, result)


def _as_os_error(error: BaseException, server: str) -> BaseException:
    """The error as an OSError that names the server; interrupts stay what they are."""
    if not isinstance(error, Exception):
        return error
    error = _cause_of(error)
    text = hidden(error) or type(error).__name__  # Clients name whole URLs, with their tokens.
    text = text if server in text else f"{server}: {text}"
    for kind in (FileNotFoundError, PermissionError, FileExistsError, TimeoutError):
        if isinstance(error, kind):
            return kind(text)
    if getattr(error, "status", None) in (401, 403):  # As HTTP clients tell it.
        return PermissionError(text)
    late = type(error).__name__ in ("FSTimeoutError", "ReadTimeout", "ConnectTimeout")
    return TimeoutError(text) if late else OSError(text)


def _cause_of(error: Exception) -> Exception:
    """Fsspec's HTTP client says "not found" whatever went wrong; the cause says what it was."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    refused = getattr(cause, "status", 404) != 404
    broken = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    return cause if refused or broken else error
