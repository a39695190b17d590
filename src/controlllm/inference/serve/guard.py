"""Who may ask: checked on every request before anything is read of it.

* `Host` names this machine: a web page that rebinds its own name to 127.0.0.1 is refused.
* `Origin` is the server's own or an allowed one: no other web page may ask in a visitor's name.
* The key, where there is one, compared in constant time. The page and `/health` need none.
"""

import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlllm.inference.serve.errors import ApiError, as_api_error
from controlllm.inference.serve.service import ClientGone, Service

__all__ = ["PUBLIC", "Guard"]

PUBLIC = ("/health", "/", "/page/")
"""Paths that need no key: they tell nothing of the model. What ends in / holds all below it."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""Of every reply."""

_log = logging.getLogger(__name__)


class Guard:
    """Stands before all routes, as ASGI has it; counts and logs each request, never its words.

    Args:
        app: what stands behind it.
        service: whose settings and metrics are used.
        routes: the paths that there are; others are counted together.
    """

    def __init__(self, app: ASGIApp, service: Service, routes: Callable[[Scope], str]) -> None:
        self.app, self.service, self.routes = app, service, routes
        settings = service.settings
        self._key = None if settings.api_key is None else settings.api_key.encode()
        self._hosts = {"localhost", settings.host.lower(), *map(str.lower, settings.allowed_hosts)}
        self._origins = {origin.lower().rstrip("/") for origin in settings.allowed_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":  # There are no web sockets here.
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        status = [499]  # The client left, unless something is sent.
        begin = time.monotonic()
        self.service.in_flight += 1
        try:
            await self._guarded(scope, receive, _noting(send, status))
        except ClientGone:
            pass
        finally:
            self.service.in_flight -= 1
            path = self.routes(scope)
            self.service.metrics.request(path, status[0])
            took = time.monotonic() - begin
            _log.info("%s %s %d %.2f s", _method(scope), path, status[0], took)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            await error.response()(scope, receive, send)
        else:
            await self._run(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; an error that it did not expect is told without its words."""
        begun = [0]
        try:
            await self.app(scope, receive, _noting(send, begun))
        except ClientGone:
            raise
        except Exception as error:
            _log.exception("%s failed", self.routes(scope))
            if begun[0]:
                raise
            await as_api_error(error).response()(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise ApiError(403, "This server is not called so; see --allowed_hosts.", code="host")
        origin = headers.get("origin")
        if origin is not None and not self._may_ask(origin.lower(), host.lower()):
            raise ApiError(403, "This page may not ask; see --allowed_origins.", code="origin")
        if origin is None and headers.get("sec-fetch-site", "none") == "cross-site":
            raise ApiError(403, "This page may not ask; see --allowed_origins.", code="origin")
        if self._key is not None and not _is_public(path):
            kind, _, given = headers.get("authorization", "").partition(" ")
            sent = given.strip().encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(sent, self._key) or kind.lower() != "bearer":
                raise ApiError(
                    401,
                    "Send the server's key as `Authorization: Bearer ...`.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    def _is_ours(self, host: str) -> bool:
        """Whether a `Host` names this server: an address, which nobody can rebind, or its name."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or _is_address(name)

    def _may_ask(self, origin: str, host: str) -> bool:
        own = origin.partition("://")[2] == host and origin.startswith(("http://", "https://"))
        return own or origin in self._origins


def _is_public(path: str) -> bool:
    return path in PUBLIC or any(
        path.startswith(one) for one in PUBLIC if one != "/" and one.endswith("/")
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE") else "?"


def _noting(send: Send, status: list[int]) -> Callable[[Message], Awaitable[None]]:
    """The same `send`, with the headers of every reply; its status is noted."""

    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            status[0] = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return noting
