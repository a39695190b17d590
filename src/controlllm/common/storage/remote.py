"""Files elsewhere: one way to open `hdfs://`, `webhdfs://`, `s3://`, `gs://`, `https://` and more.

    filesystem, path = open_filesystem("webhdfs://alice@namenode:9870/data/rows.jsonl")
    with filesystem.open(path, "rb") as file: ...

What comes back is an fsspec file system, so pyarrow reads through it as well
(`pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))`), with three promises on top:

* no wait is endless: a call, or 4 MiB of a file, that takes longer than `timeout` seconds is a
  `TimeoutError`;
* whatever goes wrong later is an `OSError` that names the address;
* it may be used after a fork and may be pickled: the client behind it is made anew in each
  process. (Only an *open file* must stay in the process that opened it.)
"""

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from controlllm.common.errors import DataError
from controlllm.common.text.secrets import hidden

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = [
    "STAMPS",
    "allow_scheme",
    "causes",
    "describe",
    "http_status",
    "is_remote",
    "open_filesystem",
    "shown",
]

STAMPS = (
    *("ETag", "etag", "checksum", "Last-Modified", "LastModified", "last_modified"),
    *("mtime", "modificationTime", "modification_time", "updated", "created"),
)
"""What file systems call the time, or the version, of a file in their listings."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_CHAINED = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*(://[^:]*)?::")
"""Leads through one file system to another (`simplecache::https://...`)."""
_LOCAL = ("file", "local")
_GLOB = re.compile(r"[*?\[{]")
_PACKAGES = {
    # The client of each scheme as pip knows it, where fsspec does not bring it along.
    "hdfs": "hdfs-native",
    "viewfs": "hdfs-native",
    "webhdfs": "requests",
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
}


_allowed = {*_PACKAGES, *_LOCAL, "memory"}
"""Schemes that are opened. Others of fsspec's read further addresses out of files, unpack, run
templates or fetch from services that nobody here has tried."""


def allow_scheme(scheme: str) -> None:
    """Let addresses of another scheme be opened, by the client that fsspec knows for it.

    For your own clients (`fsspec.register_implementation`). It holds for this process, so call it
    in a plugin (`data.plugins`), which every process runs.
    """
    _allowed.add(scheme.lower())


def is_remote(path: object) -> bool:
    """Whether `path` is an address (`scheme://...`) and not a path on this machine's disk."""
    return _CHAINED.match(str(path)) is not None or _scheme(str(path)) not in _LOCAL


def open_filesystem(
    address: str, storage_options: dict[str, Any] | None = None, timeout: float = 60.0
) -> "tuple[AbstractFileSystem, str]":
    """The file system that an address lies on, once its server has answered, and the path there.

    Args:
        address: for instance `hdfs://namenode:8020/folder`, `webhdfs://user@host:9870/a/*.parquet`,
            `s3://bucket/key`, `https://host/file.jsonl.gz`, or a path of this machine. Nothing
            needs to exist there, and the path may hold a glob.
        storage_options: passed to the client (user, token, keys, ...); see docs/hdfs.md.
        timeout: the longest wait, in seconds, of each call and of each 4 MiB of a file.

    Raises:
        DataError: if the client's package is missing, does not take the options, or the server
            cannot be reached, does not answer in time, or refuses.
    """
    from controlllm.common.storage.guarded import GuardedFileSystem

    scheme = _allowed_scheme(address)
    options = {**_options_of(address, scheme), **(storage_options or {})}
    # As Hadoop's clients do, where nothing else says who asks.
    said = any(options.get(key) for key in ("user", "token", "kerberos"))
    if scheme == "webhdfs" and not said and (user := os.environ.get("HADOOP_USER_NAME")):
        options["user"] = user
    try:
        parts = urlsplit(address)
        host = parts.netloc.rpartition("@")[2]
        server = f"{parts.scheme}://{host}" if host else address
        filesystem = GuardedFileSystem(scheme, options, timeout, server)
        filesystem.client  # noqa: B018 - so that wrong options are told now
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        remedy = f"install it with `pip install {package}`" if package else str(error)
        raise DataError(
            f"{shown(address)}: the client for {scheme}:// is missing; {remedy}."
        ) from error
    except (TypeError, ValueError, OSError) as error:
        raise DataError(
            f"{shown(address)} cannot be opened: {hidden(error)}; check the address and the "
            "storage options (docs/hdfs.md)."
        ) from error
    has_user = scheme not in ("http", "https") and "@" in parts.netloc
    plain = urlunsplit(parts._replace(netloc=host)) if has_user else address
    path = str(filesystem._strip_protocol(plain))
    if scheme not in _LOCAL:
        _probe(filesystem, path, address)
    return filesystem, path


def shown(address: object) -> str:
    """The address as messages may show it: without a password, token or signature."""
    return hidden(address)


def http_status(error: BaseException) -> int | None:
    """The HTTP status that a client tells with an error, or with what led to it."""
    for found in causes(error):
        # As aiohttp tells it, and as requests does.
        for holder, name in ((found, "status"), (getattr(found, "response", None), "status_code")):
            if isinstance(status := getattr(holder, name, None), int):
                return status
    return None


def describe(error: BaseException, address: str, begun: bool = True) -> str:
    """One sentence: the address, what happened, what to do.

    Once reading has `begun`, an unknown error means that it broke off; before, that the server
    cannot be reached.
    """
    name, text = shown(address), " ".join(hidden(error).split()) or type(error).__name__
    if "standby" in text.lower():
        return f"{name}: the name node is on standby; give the address of the active one ({text})."
    status = http_status(error)
    if isinstance(error, PermissionError) or status in (401, 403):
        return (
            f"{name} may not be read ({text}); ask for access, or give the user in "
            "`storage_options` (user, token, keys)."
        )
    missing = isinstance(error, FileNotFoundError) or status == 404
    if missing and not _is_unreachable(error):
        return f"{name} is not there ({text}); check path, host and port."
    if begun and isinstance(error, TimeoutError):
        return f"{name} did not answer in time ({text}); `data.timeout` is how long to wait."
    if isinstance(error, IsADirectoryError):
        return f"{name} is a folder, where a file is expected."
    if not begun or _is_unreachable(error):
        return f"{name} cannot be reached ({text}); check host and port, and that the server runs."
    remedy = "check the server and run again." if is_remote(address) else "is it complete?"
    return f"{name} cannot be read to its end ({text}); {remedy}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _is_unreachable(error: BaseException) -> bool:
    names = ("ClientConnectorError", "ConnectionRefusedError", "ServerDisconnectedError")
    return any(type(cause).__name__ in names for cause in causes(error))


def _allowed_scheme(address: str) -> str:
    scheme, chained = _scheme(address), _CHAINED.match(address) is not None
    if chained or scheme not in _allowed:
        what = "chains file systems (::)" if chained else f"{scheme}:// is not opened"
        raise DataError(
            f"{shown(address)}: {what}; allowed: {', '.join(sorted(_allowed))}. Allow a client of "
            "your own in Python: controlllm.common.storage.remote.allow_scheme (docs/hdfs.md)."
        )
    return scheme


def _scheme(address: str) -> str:
    match = _SCHEME.match(address)
    return match[1].lower() if match else "file"


def _options_of(address: str, scheme: str) -> dict[str, Any]:
    """What the address itself tells the client: host, port, user.

    Raises:
        DataError: if it names a user whom the client would not take over.
    """
    if scheme not in ("hdfs", "viewfs", "webhdfs"):
        return {}
    parts = urlsplit(address)
    try:
        options: dict[str, Any] = {"host": parts.hostname, "port": parts.port}
    except ValueError as error:
        raise DataError(f"{shown(address)} is no address: {error}.") from error
    if scheme == "webhdfs":
        if parts.hostname is None:
            raise DataError(f"{address} names no host; write webhdfs://namenode:9870/folder.")
        options |= {"user": parts.username, "password": parts.password}
        if parts.port is None:
            options["port"] = 9870  # Hadoop 3's; fsspec still takes Hadoop 2's 50070.
    elif parts.username is not None:
        raise DataError(
            f"{shown(address)}: the client for {scheme}:// takes no user from the address; set "
            "HADOOP_USER_NAME (or use a Kerberos ticket) and leave the user out."
        )
    return {name: value for name, value in options.items() if value is not None}


def _probe(filesystem: "AbstractFileSystem", path: str, address: str) -> None:
    """Ask the server for the path once, so that what cannot work fails now and by its name."""
    place = path
    glob = _GLOB.search(path)
    if glob and _scheme(address) not in ("http", "https"):
        place = path[: glob.start()].rpartition("/")[0] or "/"
    try:
        filesystem.info(place)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(describe(error, address, begun=False)) from error
