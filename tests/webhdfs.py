"""An HTTP server that speaks the WebHDFS REST protocol over real sockets, with faults on demand.

    with WebHdfs(tmp_path / "hdfs") as hdfs:
        (hdfs.folder / "rows.jsonl").write_text(...)      # a file on "the cluster"
        open_filesystem(hdfs.address + "rows.jsonl")      # webhdfs://127.0.0.1:{port}/rows.jsonl
        hdfs.faults.cut_read = 1000                       # the data node dies after 1000 bytes
        hdfs.requests                                     # what was asked, in order

Name node and data node listen on ports of their own, and OPEN, CREATE, APPEND and GETFILECHECKSUM
are redirected (307) from the one to the other, as "WebHDFS REST API" of Apache Hadoop describes.
"""

import hashlib
import json
import shutil
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

__all__ = ["Faults", "Request", "WebHdfs"]

PREFIX = "/webhdfs/v1"
REDIRECTED = ("OPEN", "CREATE", "APPEND", "GETFILECHECKSUM")
PIECE = 2**16
JAVA = {
    "FileNotFoundException": ("java.io", 404),
    "IOException": ("java.io", 403),
    "FileAlreadyExistsException": ("org.apache.hadoop.fs", 403),
    "PathIsNotEmptyDirectoryException": ("org.apache.hadoop.fs", 403),
    "AccessControlException": ("org.apache.hadoop.security", 403),
    "StandbyException": ("org.apache.hadoop.ipc", 403),
    "IllegalArgumentException": ("java.lang", 400),
    "UnsupportedOperationException": ("java.lang", 400),
}


@dataclass
class Faults:
    """What goes wrong; may be changed at any time.

    Attributes:
        cut_read: the data node closes the socket after so many bytes of a body it sends.
        cut_write: the data node takes so many bytes, summed over all files, and then closes the
            socket of this and of every later write (add `WebHdfs.written`, what it took so far).
        disk_bytes: the same, but it says that no node has space.
        times: only so many requests meet `cut_read` or `cut_write`; None = all.
        hang: "name" or "data": that node takes requests and never answers.
        standby: the name node is the standby of a pair.
        forbidden: paths that nobody may read or write, with everything below them.
        drip: seconds between two bytes of a body that the data node sends.
        refuse: redirects go to a port where nobody listens.
        fail: the data node answers reads with HTTP 500 and no JSON.
        gateway: renaming knows no options, as HttpFS does not.
        drops: operation to how many of it are answered; the connections of later ones break.
        elsewhere: node by name to the address (`http://host:port`) that it redirects everything to.
    """

    cut_read: int | None = None
    cut_write: int | None = None
    disk_bytes: int | None = None
    times: int | None = None
    hang: str | None = None
    standby: bool = False
    forbidden: set[str] = field(default_factory=set)
    drip: float = 0.0
    refuse: bool = False
    fail: bool = False
    gateway: bool = False
    drops: dict[str, int] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)

    def clear(self) -> None:
        """All is well again."""
        self.__init__()  # type: ignore[misc]

    def cuts(self) -> int | None:
        """After how many bytes this body is cut, if it is."""
        if self.cut_read is None or self.times == 0:
            return None
        if self.times is not None:
            self.times -= 1
        return self.cut_read


@dataclass(frozen=True)
class Request:
    """One request as it came.

    Attributes:
        node: "name" or "data".
        method: GET, PUT, POST or DELETE.
        op: the operation.
        path: the path on the file system.
        params: all parameters of the query.
        headers: all headers, by their names in small letters.
    """

    node: str
    method: str
    op: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]


class WebHdfs:
    """The two nodes; a context manager.

    Attributes:
        folder: where the files are; the root of the file system.
        address: `webhdfs://127.0.0.1:{port}/`.
        faults: what goes wrong.
        requests: what was asked.
        written: how many bytes the data node has taken.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.faults = Faults()
        self.requests: list[Request] = []
        self.written = 0
        self.closing = threading.Event()
        self._nodes = {name: _listen(self, name, host) for name in ("name", "data")}
        self.address = f"webhdfs://127.0.0.1:{self.port('name')}/"

    def __enter__(self) -> "WebHdfs":
        for node in self._nodes.values():
            threading.Thread(target=node.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        for node in self._nodes.values():
            node.shutdown()
            node.server_close()

    def port(self, node: str) -> int:
        """The port of the name node ("name") or of the data node ("data")."""
        return int(self._nodes[node].server_address[1])

    def ops(self, node: str | None = None) -> list[str]:
        """The operations asked for, of one node or of both."""
        return [request.op for request in self.requests if node in (None, request.node)]

    def local(self, path: str) -> Path:
        """Where a path of the file system lies on this machine."""
        parts = [part for part in path.split("/") if part]
        if ".." in parts or "." in parts:
            raise Refusal("IllegalArgumentException", f"Invalid path name {path}")
        return self.folder.joinpath(*parts)

    def redirect_to(self) -> int:
        """The port that redirects name."""
        if not self.faults.refuse:
            return self.port("data")
        with socket.socket() as unused:  # Closed at once: connections to it are refused.
            unused.bind(("127.0.0.1", 0))
            return int(unused.getsockname()[1])


class Refusal(Exception):
    """A RemoteException: its Java name and its message."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class _Node(BaseHTTPRequestHandler):
    """What both nodes share: parsing, JSON, errors."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    cluster: WebHdfs
    node: str

    def do_GET(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        self.params = dict(parse_qsl(parts.query))
        self.place = unquote(parts.path.removeprefix(PREFIX)) or "/"
        op = self.params.get("op", "").upper()
        headers = {name.lower(): text for name, text in self.headers.items()}
        request = Request(self.node, self.command, op, self.place, self.params, headers)
        self.cluster.requests.append(request)
        if elsewhere := self.cluster.faults.elsewhere.get(self.node):
            self.close_connection = True
            self.answer(None, 307, Location=elsewhere + self.path)
            return
        try:
            if self.cluster.faults.hang == self.node:
                self.cluster.closing.wait()
                raise ConnectionAbortedError
            self._check_access()
            self._check_drops(op)
            method = getattr(self, f"{self.command.lower()}_{op.lower()}", None)
            if method is None or not parts.path.startswith(PREFIX):
                raise Refusal("UnsupportedOperationException", f"{op} is not supported")
            method()
        except Refusal as error:
            self._refuse(error)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _check_drops(self, op: str) -> None:
        drops = self.cluster.faults.drops
        if op in drops:
            drops[op] -= 1
            if drops[op] < 0:
                raise ConnectionAbortedError

    def _check_access(self) -> None:
        for path in self.cluster.faults.forbidden:
            if self.place == path or self.place.startswith(path.rstrip("/") + "/"):
                user = self.params.get("user.name", "dr.who")
                text = f"Permission denied: user={user}, access=READ, inode={path!r}"
                raise Refusal("AccessControlException", text)

    def _refuse(self, error: Refusal) -> None:
        package, status = JAVA[error.name]
        told = {"exception": error.name, "javaClassName": f"{package}.{error.name}"}
        # A body that was not read would be taken for the next request.
        self.close_connection = True
        self.answer({"RemoteException": told | {"message": str(error)}}, status)

    def answer(self, value: Any = None, status: int = 200, **headers: str) -> None:
        """Answer with JSON, or with nothing."""
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def existing(self) -> Path:
        """The path asked for, which must be there."""
        local = self.cluster.local(self.place)
        if not local.exists():
            raise Refusal("FileNotFoundException", f"File does not exist: {self.place}")
        return local

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `WebHdfs.requests` is the log."""


class _NameNode(_Node):
    """Knows the tree; sends whoever wants bytes to the data node."""

    def _check_access(self) -> None:
        if self.cluster.faults.standby:
            text = "Operation category READ is not supported in state standby"
            raise Refusal("StandbyException", text)
        super()._check_access()

    def redirect(self) -> None:
        """307 to the data node, or its address as JSON where `noredirect` asks for it."""
        path = quote(self.place)
        query = "&".join(f"{key}={quote(value, safe='')}" for key, value in self.params.items())
        port = self.cluster.redirect_to()
        location = f"http://127.0.0.1:{port}{PREFIX}{path}?{query}&namenoderpcaddress=pico:8020"
        if self.params.get("noredirect") == "true":
            self.answer({"Location": location})
        else:
            self.answer(None, 307, Location=location)

    def get_open(self) -> None:
        if self.existing().is_dir():
            raise Refusal("FileNotFoundException", f"Path is not a file: {self.place}")
        self.redirect()

    def get_getfilechecksum(self) -> None:
        self.existing()
        self.redirect()

    def put_create(self) -> None:
        self.redirect()

    def post_append(self) -> None:
        self.existing()
        self.redirect()

    def get_getfilestatus(self) -> None:
        self.answer({"FileStatus": self.status(self.existing(), "")})

    def get_liststatus(self) -> None:
        local = self.existing()
        if local.is_file():
            found = [self.status(local, "")]
        else:
            found = [self.status(child, child.name) for child in sorted(local.iterdir())]
        self.answer({"FileStatuses": {"FileStatus": found}})

    def get_getcontentsummary(self) -> None:
        local = self.existing()
        inside = [local, *local.rglob("*")]
        length = sum(path.stat().st_size for path in inside if path.is_file())
        summary = {
            "directoryCount": sum(path.is_dir() for path in inside),
            "fileCount": sum(path.is_file() for path in inside),
            "length": length,
            "quota": -1,
            "spaceConsumed": length,
            "spaceQuota": -1,
        }
        self.answer({"ContentSummary": summary})

    def get_gethomedirectory(self) -> None:
        self.answer({"Path": f"/user/{self.params.get('user.name', 'dr.who')}"})

    def put_mkdirs(self) -> None:
        local = self.cluster.local(self.place)
        if any(place.is_file() for place in (local, *local.parents)):
            raise Refusal("FileAlreadyExistsException", f"Path is not a directory: {self.place}")
        local.mkdir(parents=True, exist_ok=True)
        self.answer({"boolean": True})

    def put_rename(self) -> None:
        source = self.cluster.local(self.place)
        target = self.cluster.local(self.params["destination"])
        if target.is_dir():
            target = target / source.name
        overwrite = self.params.get("renameoptions") == "OVERWRITE"
        if overwrite and not self.cluster.faults.gateway:
            if not source.exists():
                raise Refusal("FileNotFoundException", f"rename source {self.place} is not found")
            source.replace(target)
            self.answer()
            return
        fits = source.exists() and target.parent.is_dir() and not target.exists()
        if fits:
            source.rename(target)
        self.answer({"boolean": fits})

    def delete_delete(self) -> None:
        local = self.cluster.local(self.place)
        existed = local.exists()
        if local.is_dir():
            if any(local.iterdir()) and self.params.get("recursive") != "true":
                text = f"{self.place} is non empty"
                raise Refusal("PathIsNotEmptyDirectoryException", text)
            shutil.rmtree(local)
        elif existed:
            local.unlink()
        self.answer({"boolean": existed})

    def status(self, local: Path, suffix: str) -> dict[str, Any]:
        """The FileStatus of one path."""
        stat, is_dir = local.stat(), local.is_dir()
        return {
            "accessTime": int(stat.st_atime * 1000),
            "blockSize": 0 if is_dir else 134217728,
            "childrenNum": len(list(local.iterdir())) if is_dir else 0,
            "fileId": stat.st_ino,
            "group": "supergroup",
            "length": 0 if is_dir else stat.st_size,
            "modificationTime": int(stat.st_mtime * 1000),
            "owner": self.params.get("user.name", "dr.who"),
            "pathSuffix": suffix,
            "permission": "755" if is_dir else "644",
            "replication": 0 if is_dir else 1,
            "storagePolicy": 0,
            "type": "DIRECTORY" if is_dir else "FILE",
        }


class _DataNode(_Node):
    """Sends and takes bytes."""

    def get_open(self) -> None:
        if self.cluster.faults.fail:
            self.send_error(500, "Internal Server Error")
            return
        local = self.existing()
        size, offset = local.stat().st_size, int(self.params.get("offset", 0))
        if offset > size:
            text = f"Offset={offset} out of the range [0, {size}); OPEN, path={self.place}"
            raise Refusal("IOException", text)
        left = min(int(self.params.get("length", size)), size - offset)
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(left))
        self.end_headers()
        with local.open("rb") as file:
            file.seek(offset)
            self._send(file, left)

    def get_getfilechecksum(self) -> None:
        digest = hashlib.md5(self.existing().read_bytes()).hexdigest()
        value = {"algorithm": "MD5-of-1MD5-of-512CRC32", "bytes": digest, "length": 28}
        self.answer({"FileChecksum": value})

    def put_create(self) -> None:
        local = self.cluster.local(self.place)
        if local.is_dir():
            raise Refusal("FileAlreadyExistsException", f"{self.place} is a directory")
        if local.exists() and self.params.get("overwrite") != "true":
            raise Refusal("FileAlreadyExistsException", f"{self.place} already exists")
        local.parent.mkdir(parents=True, exist_ok=True)
        self._take(local, "wb")
        self.answer(None, 201, Location=f"hdfs://pico:8020{quote(self.place)}")

    def post_append(self) -> None:
        self._take(self.existing(), "ab")
        self.answer()

    def _send(self, file: Any, left: int) -> None:
        faults = self.cluster.faults
        cut = faults.cuts()
        left = left if cut is None else min(left, cut)
        while left:
            data = file.read(1 if faults.drip else min(PIECE, left))
            self.wfile.write(data)
            left -= len(data)
            if self.cluster.closing.wait(faults.drip):
                raise ConnectionAbortedError
        if cut is not None:
            self._drop()

    def _take(self, local: Path, mode: str) -> None:
        """Write the body as it comes: what was taken stays, as on a cluster."""
        if "Content-Length" not in self.headers:
            raise Refusal("IllegalArgumentException", "Content-Length is missing")
        self.unread = int(self.headers["Content-Length"])
        with local.open(mode) as file:
            while self.unread:
                data = self._next()
                room = self._room()
                file.write(data[:room])
                file.flush()
                self.cluster.written += min(len(data), room)
                if room < len(data) or room == 0:
                    self._no_room()

    def _next(self) -> bytes:
        data = self.rfile.read(min(PIECE, self.unread))
        if not data:
            raise ConnectionAbortedError
        self.unread -= len(data)
        return data

    def _room(self) -> int:
        """How many bytes may still be written before a fault."""
        faults = self.cluster.faults
        limits = [limit for limit in (faults.cut_write, faults.disk_bytes) if limit is not None]
        return max(min(limits) - self.cluster.written, 0) if limits else 2**62

    def _no_room(self) -> None:
        faults = self.cluster.faults
        if faults.disk_bytes is None:
            faults.times = None if faults.times is None else faults.times - 1
            if faults.times == 0:
                faults.clear()
            self._drop()
        while self.unread:
            self._next()
        text = f"File {self.place} could only be written to 0 of the 1 minReplication nodes."
        raise Refusal("IOException", text)

    def _drop(self) -> None:
        """Reset the connection, as a process that was killed does."""
        time.sleep(0.02)  # What was sent gets out first.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()  # It keeps the socket open.
        self.connection.close()
        raise ConnectionAbortedError


def _listen(cluster: WebHdfs, name: str, host: str) -> ThreadingHTTPServer:
    kind = _NameNode if name == "name" else _DataNode
    handler = type(kind.__name__, (kind,), {"cluster": cluster, "node": name})
    server = ThreadingHTTPServer((host, 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    return server
