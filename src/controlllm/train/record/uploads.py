"""Copies of checkpoints elsewhere are made while training goes on."""

import threading
from collections.abc import Callable

from controlllm.train.parallel import World

__all__ = ["Uploads"]

_PATIENCE_SECONDS = 10.0


class Uploads:
    """One copy at a time, in a thread of the first process.

    The others only wait where they must, and then in short turns, so that a slow server is no
    process that does not answer (`parallel.timeout`). Whether the run copies at all is `enabled`,
    the same on all processes.
    """

    def __init__(self, enabled: bool, world: World) -> None:
        self.enabled, self.world = enabled, world
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def running(self) -> bool:
        """Whether this process is copying."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether a copy of this process has failed, which nobody was told of yet."""
        return self._error is not None and not self.running

    def start(self, copy: Callable[[], None]) -> None:
        """Begin to `copy` on the first process, once `wait` has seen the one before end."""
        if not (self.enabled and self.world.is_first):
            return

        def run() -> None:
            try:
                copy()
            except Exception as error:
                self._error = error

        # A daemon: a run that fails does not wait for a server.
        self._thread = threading.Thread(target=run, name="upload", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being copied. Collective.

        Raises:
            CheckpointError: the copy failed; on all processes.
        """
        if not self.enabled:
            return
        turn = min(_PATIENCE_SECONDS, self.world.config.timeout / 2)
        running = True
        while running:
            self.close(turn if self.world.size > 1 else None)
            running = bool(self.world.max([self.running])[0])
        error, self._error = self._error, None
        self.world.ranks.agree(error)

    def close(self, seconds: float | None = None) -> None:
        """Wait for the copy in progress, so long at most; None = as long as it takes."""
        if self._thread is not None:
            self._thread.join(seconds)
