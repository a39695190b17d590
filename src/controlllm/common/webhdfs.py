"""The WebHDFS client: fsspec's, with time-outs, checked answers, and uploads in one stream."""

from typing import Any

import requests
from fsspec.implementations.webhdfs import WebHDFile, WebHDFS

__all__ = ["WebHdfsClient"]


class WebHdfsClient(WebHDFS):
    """fsspec's `webhdfs`, which by itself waits for ever and takes a data node's error for data.

    Args:
        host: the name node (or an HttpFS gateway).
        port: its HTTP port.
        timeout: the longest wait, in seconds, to connect, and for the next bytes.
        **options: those of fsspec's client: `user`, `password`, `token`, `kerberos`, `proxy_to`,
            `use_https`, `data_proxy`, ...
    """

    def __init__(self, host: str, port: int = 9870, timeout: float = 60.0, **options: Any) -> None:
        self.timeout = timeout
        super().__init__(host, port=port, **options)

    def _connect(self) -> None:
        super()._connect()
        self.session.mount("http://", _Adapter(self.timeout))
        self.session.mount("https://", _Adapter(self.timeout))

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
        """Rename.

        Raises:
            OSError: if the name node would not; it says so in the body of a good answer.
        """
        answer = self._call("RENAME", method="put", path=path1, destination=path2)
        if not answer.json()["boolean"]:
            raise OSError(f"{path1} could not be renamed to {path2}")

    def put_stream(self, stream: Any, path: str) -> None:
        """Create a file from a stream: one request to the name node, one to a data node.

        Args:
            stream: has `read(size)` and a length.
            path: the file's place; an older one is replaced.

        Raises:
            OSError: if it was not taken whole.
        """
        asked = self._call("CREATE", method="put", path=path, redirect=False, overwrite="true")
        if "Location" not in asked.headers:
            raise OSError(f"{path}: the name node told no data node to write to")
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


class _Adapter(requests.adapters.HTTPAdapter):
    """Sends every request with a time-out."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        super().__init__()

    def send(self, request: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Send with a time-out."""
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.timeout
        return super().send(request, **kwargs)


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
    if kind == "FileNotFoundException":
        raise FileNotFoundError(message)
    if kind in ("AccessControlException", "SecurityException"):
        raise PermissionError(message)
    raise OSError(message)
