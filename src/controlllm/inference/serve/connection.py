"""Connections with patience that ends: of clients that send nothing, and that read nothing."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["patient"]


def patient(seconds: float) -> type[H11Protocol]:
    """A protocol for uvicorn that drops clients which keep it waiting for so long.

    Uvicorn itself waits without end for the first bytes of a connection, for the rest of a header,
    and for a client to read.
    """

    class Patient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.access_log = False  # It would show what clients wrote into paths.
            self._wait()

        def handle_events(self) -> None:
            super().handle_events()
            begun = self.cycle is not None and not self.cycle.response_complete
            if begun and not self.flow.write_paused:
                self._stop()  # A request has come; the application sees to its body.

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._stop()
            self._wait()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._stop()
            self._timer = self.loop.call_later(seconds, self.transport.abort)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Patient
