"""The HTTP client of `https://` addresses: what the user says to a server stays with that server.

Downloads are often redirected to another host (the Hub's and other CDNs). These are followed, but
without the user's headers, cookies and password, never from https to http, and never further
inwards than the typed host (`reach`).
"""

import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, ClientSession, TCPConnector

from controlllm.common.storage.reach import Reach, origin

__all__ = ["client_of"]

_TOLD_TO_ALL = {"host", "accept", "accept-encoding", "connection", "range", "user-agent"}
"""Headers that other hosts get, too."""


def client_of(server: str, proxied: bool) -> Callable[..., Awaitable[ClientSession]]:
    """What makes the sessions of fsspec's HTTP client.

    With a proxy, the proxy alone says where to connect.
    """

    async def get_client(**settings: Any) -> ClientSession:
        settings["middlewares"] = (*settings.get("middlewares", ()), _discreet(server))
        if not proxied and "connector" not in settings:
            reach = Reach(urlsplit(server).hostname or "")
            settings["connector"] = TCPConnector(socket_factory=_sockets(reach))
        return ClientSession(**settings)

    return get_client


def _discreet(server: str) -> Callable[[ClientRequest, ClientHandlerType], Any]:
    """Sees each request, also those that follow redirects, before it is sent."""
    own = origin(server)

    async def send(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        other = origin(str(request.url))
        if other != own:
            if (own[0], other[0]) == ("https", "http"):
                raise PermissionError(
                    errno.EACCES, f"{server} redirects to {request.url.origin()}: not secure"
                )
            for name in {name for name in request.headers if name.lower() not in _TOLD_TO_ALL}:
                request.headers.popall(name, None)
        return await handler(request)

    return send


def _sockets(reach: Reach) -> Callable[[Any], socket.socket]:
    """Sockets only to addresses within reach; names are resolved by then."""

    def make(entry: Any) -> socket.socket:
        family, kind, protocol, _, address = entry
        refusal = reach.refusal(str(address[0]))
        if refusal:
            raise PermissionError(errno.EACCES, refusal)
        return socket.socket(family, kind, protocol)

    return make
