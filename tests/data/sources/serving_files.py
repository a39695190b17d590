"""A web server of the files in a folder, with and without HTTP ranges, and with faults."""

import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["WebFiles"]


class WebFiles:
    """A context manager; `address` ends with `/`.

    Args:
        folder: what is served, with listings of folders.
        ranges: whether parts of files are.

    Attributes:
        requests: (method, path, range) as asked.
        cuts: how many of the next bodies break off in the middle.
        statuses: path -> status it is refused with.
    """

    def __init__(self, folder: Path, ranges: bool) -> None:
        self.folder, self.ranges = folder, ranges
        self.requests: list[tuple[str, str, str | None]] = []
        self.cuts = 0
        self.statuses: dict[str, int] = {}
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> "WebFiles":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    site: WebFiles
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, directory=str(self.site.folder))

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        self.site.requests.append(("GET", self.path, span))
        local = Path(self.translate_path(self.path))
        if (status := self.site.statuses.get(self.path)) is not None:
            self.send_error(status)
        elif local.is_file():
            self._send(local.read_bytes(), span if self.site.ranges else None)
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        if (status := self.site.statuses.get(self.path)) is not None:
            self.send_error(status)
        else:
            super().do_HEAD()

    def _send(self, data: bytes, span: str | None) -> None:
        status, total = 200, len(data)
        if span and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", span)):
            start, end = int(match[1]), int(match[2] or total - 1)
            data, status = data[start : end + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{total}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.site.cuts and len(data) > 1000:
            self.site.cuts -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `WebFiles.requests` is the log."""
