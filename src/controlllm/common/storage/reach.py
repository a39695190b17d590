"""How far a server may send its clients on.

A server that the user typed may answer "look over there": at a data node, at a CDN. Over there may
also be a service of this machine or of its network, which trusts every client from within. So a
redirect leads no further inwards than what was typed:

| the typed host is | redirects may lead to |
|---|---|
| public | public addresses |
| private (10/8, 192.168/16, 100.64/10, fc00::/7, ...) | these, and private ones |
| this machine (127/8, ::1) | these, and this machine |
| link-local (169.254/16, fe80::/10) | public, private and link-local ones |
"""

import socket
from collections.abc import Collection
from functools import cached_property
from ipaddress import IPv6Address, ip_address
from typing import Literal
from urllib.parse import urlsplit

__all__ = ["Reach", "origin"]

Kind = Literal["public", "private", "loopback", "link-local"]

_ALLOWED: dict[Kind, set[Kind]] = {
    "public": {"public"},
    "private": {"public", "private"},
    "loopback": {"public", "private", "loopback"},
    "link-local": {"public", "private", "link-local"},
}


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of an HTTP address: to whom it is sent."""
    parts = urlsplit(url)
    usual = {"http": 80, "https": 443}.get(parts.scheme.lower())
    return parts.scheme.lower(), (parts.hostname or "").lower(), parts.port or usual


class Reach:
    """Which addresses may be connected to on behalf of a typed host.

    `also` names further hosts that the user typed, which are never refused.
    """

    def __init__(self, host: str, also: Collection[str] = ()) -> None:
        self.host = host
        self.also = {name.lower() for name in also}

    def refusal(self, address: str, host: str | None = None) -> str | None:
        """Why an address may not be connected to; None if it may."""
        if (host or "").lower() in {self.host.lower(), *self.also}:
            return None
        kind = _kind(address)
        if kind in self._kinds:
            return None
        return (
            f"{self.host} redirects to {host or address}, a {kind} address: redirects may not lead "
            "further inside. If you mean that server, give its address yourself (docs/hdfs.md)"
        )

    @cached_property
    def _kinds(self) -> set[Kind]:
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        except OSError:
            return _ALLOWED["public"]
        return set().union(*(_ALLOWED[_kind(str(entry[4][0]))] for entry in found))


def _kind(address: str) -> Kind:
    ip = ip_address(address)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback or ip.is_unspecified:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    return "public" if ip.is_global else "private"
