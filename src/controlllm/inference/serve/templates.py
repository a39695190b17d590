"""The process in which chat templates render, kept warm, and ended when it takes too long."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any

from controlllm.common.errors import DataError
from controlllm.inference.serve.settings import ServeLimits

__all__ = ["TemplateProcess", "TemplateTimeError"]

_START_SECONDS = 120.0
_PASSED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR")
"""The environment that the process gets: none of the keys and tokens that may stand in ours."""
_CHARS_PER_BYTE = 4
"""A template may write so many times what a body may hold."""


class TemplateTimeError(DataError):
    """The template took too long, or too much memory, and its process was ended."""


class TemplateProcess:
    """Renders conversations by one template; may be called from any thread, one at a time.

    Args:
        tokenizer: whose template and special tokens are used; it must have one.
        limits: how long it may take, and how much memory.
    """

    def __init__(self, tokenizer: Any, limits: ServeLimits) -> None:
        self._request = {
            "template": tokenizer.get_chat_template(),
            "variables": {k: _plain(v) for k, v in tokenizer.special_tokens_map.items()},
        }
        self.limits = limits
        self._most = limits.body_bytes * _CHARS_PER_BYTE
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of a conversation, up to where the answer begins.

        Raises:
            DataError: the template refuses it.
            TemplateTimeError: it took too long, or too much memory.
        """
        with self._lock:
            reply = self._ask(json.dumps(self._request | {"messages": list(messages)}).encode())
        if "text" not in reply:
            raise DataError(f"the chat template refuses the conversation ({reply['error']}).")
        return str(reply["text"])

    def start(self) -> None:
        """Start the process, so that the first conversation need not wait for it."""
        with self._lock:
            self._connected()

    def close(self) -> None:
        """End the process."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()
            process.wait()

    def _ask(self, request: bytes) -> dict[str, Any]:
        connection = self._connected()
        try:
            connection.send_bytes(request)
            if not connection.poll(self.limits.template_seconds):
                raise TimeoutError
            reply: dict[str, Any] = json.loads(connection.recv_bytes(self._most * 6 + 1024))
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise TemplateTimeError(
                f"the chat template took more than {self.limits.template_seconds:g} seconds or "
                f"{self.limits.template_mib} MiB, and was ended."
            ) from error
        return reply

    def _connected(self) -> Connection:
        """The connection to a process that is ready."""
        if self._connection is None or self._process is None or self._process.poll() is not None:
            self.close()
            self._process, self._connection = self._started()
        return self._connection

    def _started(self) -> tuple["subprocess.Popen[bytes]", Connection]:
        ours, theirs = socket.socketpair()
        limits = [self.limits.template_seconds, self.limits.template_mib, self._most]
        with theirs:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", str(Path(__file__).with_name("template_worker.py"))),
                    *map(str, [theirs.fileno(), *limits]),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal is not meant for it.
                env={k: v for k, v in os.environ.items() if k in _PASSED} | {"HF_HUB_OFFLINE": "1"},
            )
        connection = Connection(ours.detach())
        if not _is_ready(connection):
            connection.close()
            process.kill()
            process.wait()
            raise TemplateTimeError("the process that renders chat templates did not start.")
        return process, connection


def _is_ready(connection: Connection) -> bool:
    try:
        return connection.poll(_START_SECONDS) and connection.recv_bytes(16) == b"ready"
    except (OSError, EOFError):  # It has ended already.
        return False


def _plain(value: Any) -> Any:
    return [str(one) for one in value] if isinstance(value, list) else str(value)
