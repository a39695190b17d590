"""The server as a process: listens, says where, and ends without losing what runs."""

import logging
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from controlllm.common.errors import ConfigError
from controlllm.inference.serve.connection import patient
from controlllm.inference.serve.service import Service

__all__ = ["Server", "serve"]


class Server(uvicorn.Server):
    """Asked to stop, it refuses new requests and lets those that run finish, for so long.

    Args:
        app: what `make_app` made.
        tell: is given the address (host, port) as soon as it listens.
    """

    def __init__(self, app: FastAPI, tell: Callable[[str, int], None] = lambda *_: None) -> None:
        self.service: Service = app.state.service
        self.tell = tell
        self._ends: float | None = None
        settings, limits = self.service.settings, self.service.settings.limits
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=patient(limits.client_seconds),
            ws="none",
            limit_concurrency=limits.connections,
            timeout_keep_alive=int(max(1, min(limits.client_seconds, 30))),
            timeout_graceful_shutdown=5,  # To send what is told then.
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
        )
        super().__init__(config)

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            host, port = server.sockets[0].getsockname()[:2]
            self.tell(host, port)
            return

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal lets what runs finish, a second one ends it, a third one does not wait."""
        now = time.monotonic()
        if self._ends is None:
            self.stop()
        elif now < self._ends:
            self._ends = now
        else:
            super().handle_exit(sig, frame)

    def stop(self) -> None:
        """Take nothing more, and end when what runs has ended or its time is up."""
        self.service.draining = True
        self._ends = time.monotonic() + self.service.settings.limits.stop_seconds

    async def on_tick(self, counter: int) -> bool:
        """Asked by uvicorn ten times a second: whether to end."""
        if self._ends is not None:
            if time.monotonic() > self._ends:
                await self.service.engine.close()  # What still runs is told so.
                return True
            if self.service.in_flight == 0:
                return True
        return await super().on_tick(counter)


def serve(app: FastAPI, tell: Callable[[str, int], None] = lambda *_: None) -> None:
    """Serve until a signal says to stop.

    Raises:
        ConfigError: the address cannot be listened on, or what it needs did not start.
    """
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = Server(app, tell)
    try:
        server.run()
    except SystemExit:
        if server.started:
            raise
    if server.started:
        return
    if server.lifespan.should_exit:
        raise ConfigError("the server did not start; the error above says why.")
    settings = server.service.settings
    raise ConfigError(
        f"cannot listen on {settings.host}, port {settings.port}: is another server there? "
        "Choose another --port."
    )
