"""The WebHDFS client: fsspec's, with time-outs, checked answers, and uploads in one stream.

Who asks is told to the name node alone. Its redirects to data nodes carry what these need (a user's
name or a delegation token, put there by the name node itself); the client adds nothing to them.
"""

from typing import Any
from urllib.parse import urlsplit

import requests
from fsspec.implementations.webhdfs import WebHDFile, WebHDFS
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

from controlllm.common.errors import DataError
from controlllm.common.storage.reach import Reach, origin

__all__ = ["WebHdfsClient"]


class WebHdfsClient(WebHDFS):
    """fsspec's `webhdfs` with time-outs, and with the errors of data nodes told apart from data.

    Args:
        host: the name node (or an HttpFS gateway).
        port: its HTTP port.
        timeout: the longest wait, in seconds, to connect, and for the next bytes.
        **options: those of fsspec's client: `user`, `password`, `token`, `kerberos`, `proxy_to`,
            `use_https`, `data_proxy`, ...
    """

    def __init__(self, host: str, port: int = 9870, timeout: float = 60.0, **options: Any) -> None:
        self.timeout = timeout
        self.host = host
        super().__init__(host, port=port, **options)

    session: requests.Session

    def _connect(self) -> None:
        super()._connect()
        # What a function maps data nodes to is the user's own choice, as typed hosts are.
        reach = None if callable(self.proxy) else Reach(self.host, _hosts(self.proxy))
        self.session = _Session(self.session, self._apply_proxy(self.url), self.timeout, reach)

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any
    ) -> Any:
        allowed = ("autocommit", "replication", "permissions", "cache_type")
        options = {"autocommit": True} | {k: v for k, v in kwargs.items() if k in allowed}
        return _File(
            self,
            path,
            mode=mode,
            block_size=block_size or self.blocksize,
            tempdir=self.tempdir,
            **options,
        )

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Rename; with `overwrite=True` in place of an older file, in one step.

        Raises:
            OSError: if the name node would not; it says so in the body of a good answer. A gateway
                (HttpFS) does not know `overwrite`, and will not where there is an older file.
        """
        options = {"renameoptions": "OVERWRITE"} if kwargs.get("overwrite") else {}
        answer = self._call("RENAME", method="put", path=path1, destination=path2, **options)
        if answer.content and not answer.json()["boolean"]:
            raise OSError(f"{path1} could not be renamed to {path2}")

    def put_stream(self, stream: Any, path: str) -> None:
        """Create a file from a stream: one request to the name node, one to a data node.

        The stream has `read(size)` and a length; an older file is replaced.

        Raises:
            OSError: if it was not taken whole.
        """
        asked = self._call("CREATE", method="put", path=path, redirect=False, overwrite="true")
        if "Location" not in asked.headers:
            raise OSError(f"{path}: the name node named no data node to write to")
        answer = self.session.put(
            self._apply_proxy(asked.headers["Location"]),
            data=stream,
            headers={"Content-Type": "application/octet-stream"},
        )
        _check(answer, path)


class _File(WebHDFile):
    """A file whose ranges are what was asked for, or an error."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        start, end = max(start, 0), min(self.size, end)
        if start >= end:
            return b""
        asked = self.fs._call(
            "OPEN", path=self.path, offset=start, length=end - start, redirect=False
        )
        answer = asked
        if "Location" in asked.headers:
            answer = self.fs.session.get(self.fs._apply_proxy(asked.headers["Location"]))
        _check(answer, self.path)
        if len(answer.content) != end - start:
            raise OSError(f"{self.path}: {len(answer.content)} bytes instead of {end - start} came")
        data: bytes = answer.content
        return data


class _Session(requests.Session):
    """Tells who asks to one origin only, and follows no redirects by itself.

    `made` is a session with the proof of who asks, which only the name node gets; `reach` is where
    the name node may send its clients (None: anywhere).
    """

    def __init__(
        self, made: requests.Session, url: str, timeout: float, reach: Reach | None
    ) -> None:
        super().__init__()
        self.url = url
        self.auth = made.auth
        self.others = requests.Session()
        self.others.auth = lambda request: request  # as nobody; also keeps `~/.netrc` out
        for session in (self, self.others):
            session.cert, session.verify = made.cert, made.verify
            for scheme in ("http://", "https://"):
                within = reach if session is self.others else None
                session.mount(scheme, _Adapter(timeout, within))

    def request(self, method: Any, url: Any, *args: Any, **settings: Any) -> requests.Response:
        """Send to the name node as the user, to any other server as nobody.

        Raises:
            OSError: if the answer is a redirect that the caller does not look for.
            DataError: if the server is out of reach.
        """
        expected = not settings.get("allow_redirects", True)
        settings["allow_redirects"] = False
        own, other = origin(self.url), origin(str(url))
        if (own[0], other[0]) == ("https", "http"):
            raise DataError(
                f"{self.url} redirects from https to http://{other[1]}, which is not secure"
            )
        send = super().request if own == other else self.others.request
        answer = send(method, url, *args, **settings)
        if answer.is_redirect and not expected:
            raise OSError(
                f"{own[1] if own == other else other[1]} answers with a redirect to "
                f"{answer.headers['Location'].partition('?')[0]}, which is not part of WebHDFS; if "
                "that is the right server, name it in the address"
            )
        return answer


class _Adapter(requests.adapters.HTTPAdapter):
    """Sends every request with a time-out, and connects only within reach."""

    def __init__(self, timeout: float, reach: Reach | None) -> None:
        self.timeout = timeout
        super().__init__()
        if reach is not None:
            self.poolmanager.pool_classes_by_scheme = {
                "http": _within(HTTPConnectionPool, reach),
                "https": _within(HTTPSConnectionPool, reach),
            }

    def send(self, request: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Send with a time-out."""
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.timeout
        return super().send(request, **kwargs)


def _hosts(proxy: Any) -> set[str]:
    """The hosts to which `data_proxy` maps data nodes: the user has typed them."""
    mapped = [str(value) for value in proxy.values()] if isinstance(proxy, dict) else []
    places = (value if "://" in value else f"//{value}" for value in mapped)
    return {urlsplit(place).hostname or "" for place in places} - {""}


def _within(pool: Any, reach: Reach) -> Any:
    """A pool of connections whose address is looked at before anything is sent."""

    class Connection(pool.ConnectionCls):
        def _new_conn(self) -> Any:
            made = super()._new_conn()
            refusal = reach.refusal(made.getpeername()[0], self.host)
            if refusal:
                made.close()
                raise DataError(refusal)
            return made

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})


def _check(answer: requests.Response, path: str) -> None:
    """Turn what a data node says is wrong into an error.

    Raises:
        FileNotFoundError, PermissionError, OSError: as its RemoteException tells.
    """
    if answer.ok:
        return
    try:
        told = answer.json()["RemoteException"]
        kind, text = str(told["exception"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        kind, text = answer.reason, answer.text[:200]
    message = f"{path}: {kind}: {text} (HTTP {answer.status_code})"
    raise _ERRORS.get(kind, OSError)(message)


_ERRORS = {
    "FileNotFoundException": FileNotFoundError,
    "AccessControlException": PermissionError,
    "SecurityException": PermissionError,
}
